//! The C ABI of the client: opaque handles, status codes, and the last error's text per thread.
//!
//! Unsafe room. What C promises is in each function's `# Safety`; what it cannot promise (UTF-8, ranges, null pointers) is
//! checked. A panic never crosses the boundary: it becomes [`Status::Internal`].
//!
//! * `status`: codes, the last error, the boundary;
//! * `types`: structs and enums that C sees;
//! * here: the functions.
#![allow(unsafe_code)]

mod status;
mod types;

use std::ffi::c_char;
use std::time::Duration;

use lmcache_client::blocking::{Client, Retrieve, Store};
use lmcache_client::{Options, monotonic_nanos, transfer_id};

pub use status::Status;
use status::{Failure, bound, last_error, text};
pub use types::{CPrompt, CRecord, CRegistration, Direction, Publication, RecordKind};

/// A connection to the daemon, and the worker that is registered over it.
pub struct CClient(Client);

/// A store under way.
pub struct CStore(Store);

/// A retrieve under way.
pub struct CRetrieve(Retrieve);

fn millis(value: u64) -> Duration {
    // A day is for ever here, and does not overflow a clock.
    Duration::from_millis(value.clamp(1, 86_400_000))
}

/// A reference to what `pointer` points to.
///
/// # Safety
/// Null, or a valid value that lives and is not written for `'a`.
unsafe fn reference<'a, T>(pointer: *const T, what: &'static str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's contract.
    unsafe { pointer.as_ref() }.ok_or(Failure::Null(what))
}

/// Puts a new handle or number where the caller wants it.
///
/// # Safety
/// Null, or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::Null("out"));
    }
    // SAFETY: the caller's contract.
    unsafe { place.write(value) };
    Ok(())
}

/// Takes a handle's value out of its box.
///
/// # Safety
/// Null, or made by `Box::into_raw` and not freed yet.
unsafe fn own<T>(handle: *mut T, what: &'static str) -> Result<Box<T>, Failure> {
    if handle.is_null() {
        return Err(Failure::Null(what));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { Box::from_raw(handle) })
}

/// What went wrong in this thread's last call that did not return LMCACHE_STATUS_OK; "" if nothing did. Valid until this
/// thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn lmcache_last_error() -> *const c_char {
    last_error()
}

/// Connects to "tcp://host:port" or "ipc:///path". The first number bounds each connect, the second each call.
///
/// # Safety
/// `endpoint` is a string; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_client_connect(
    endpoint: *const c_char,
    connect_timeout_ms: u64,
    call_timeout_ms: u64,
    out: *mut *mut CClient,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let endpoint = unsafe { text(endpoint, "endpoint") }?;
        let options = Options::default().timeouts(millis(connect_timeout_ms), millis(call_timeout_ms));
        // SAFETY: this function's contract.
        unsafe { connect(endpoint, options, out) }
    })
}

/// The same with the token of a tenant, for a daemon with --tenant-tokens-file: every connection shows it first, and may use
/// the cache salts that it opens. LMCACHE_STATUS_REFUSED: the daemon does not know the token.
///
/// # Safety
/// `endpoint` and `token` are strings; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_client_connect_with_token(
    endpoint: *const c_char,
    token: *const c_char,
    connect_timeout_ms: u64,
    call_timeout_ms: u64,
    out: *mut *mut CClient,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (endpoint, token) = unsafe { (text(endpoint, "endpoint")?, text(token, "token")?) };
        let options = Options::default().timeouts(millis(connect_timeout_ms), millis(call_timeout_ms));
        // SAFETY: this function's contract.
        unsafe { connect(endpoint, options.token(token), out) }
    })
}

/// # Safety
/// `out` is null or valid for a write.
unsafe fn connect(endpoint: &str, options: Options, out: *mut *mut CClient) -> Result<(), Failure> {
    let client = Client::connect(endpoint, options)?;
    let handle = Box::into_raw(Box::new(CClient(client)));
    // SAFETY: this function's contract.
    unsafe { put(out, handle) }.inspect_err(|_| {
        // SAFETY: made two lines above, and given to nobody.
        drop(unsafe { Box::from_raw(handle) });
    })
}

/// Frees a client. Stores and retrieves that are under way stay valid. Null is nothing.
///
/// # Safety
/// A client of `lmcache_client_connect` that was not freed, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_client_free(client: *mut CClient) {
    if !client.is_null() {
        bound(|| {
            // SAFETY: this function's contract.
            drop(unsafe { own(client, "client") }?);
            Ok(())
        });
    }
}

/// Tokens of a chunk, as the daemon has it.
///
/// # Safety
/// `client` is a client; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_chunk_size(client: *const CClient, out: *mut u64) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let client = unsafe { reference(client, "client") }?;
        let size = client.0.chunk_size()?;
        // SAFETY: as above.
        unsafe { put(out, size) }
    })
}

/// Registers the worker, maps the pool, and gets a lane of the shared ring if the daemon has one.
///
/// # Safety
/// `client` is a client; `registration` is a registration, its texts are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_register(
    client: *const CClient,
    registration: *const CRegistration,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, registration) =
            unsafe { (reference(client, "client")?, reference(registration, "registration")?) };
        // SAFETY: as above.
        let registration = unsafe { registration.to_rust() }?;
        Ok(client.0.register(registration)?)
    })
}

/// Forgets the worker.
///
/// # Safety
/// `client` is a client.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_unregister(client: *const CClient) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let client = unsafe { reference(client, "client") }?;
        Ok(client.0.unregister()?)
    })
}

/// Asks whether the daemon is there, and registers the worker again if the daemon does not know it.
///
/// # Safety
/// `client` is a client.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_ping(client: *const CClient) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let client = unsafe { reference(client, "client") }?;
        Ok(client.0.ping()?)
    })
}

/// Begins a lookup of the prompt's whole chunks.
///
/// # Safety
/// `client` is a client; `prompt` is a prompt with its strings and tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_lookup_submit(client: *const CClient, prompt: *const CPrompt) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, prompt) = unsafe { (reference(client, "client")?, reference(prompt, "prompt")?) };
        // SAFETY: as above.
        Ok(client.0.lookup_submit(&unsafe { prompt.to_rust() }?)?)
    })
}

/// Waits for a lookup's result: chunks found, from the prompt's beginning. LMCACHE_STATUS_PENDING if it takes longer.
///
/// # Safety
/// `client` is a client; `request_id` is a string; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_lookup_wait(
    client: *const CClient,
    request_id: *const c_char,
    timeout_ms: u64,
    out: *mut u64,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, request_id) = unsafe { (reference(client, "client")?, text(request_id, "request_id")?) };
        let found = client.0.lookup_wait(request_id, millis(timeout_ms))?.ok_or(Failure::Pending)?;
        // SAFETY: as above.
        unsafe { put(out, found) }
    })
}

/// Ends a request.
///
/// # Safety
/// `client` is a client; `request_id` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_end_session(client: *const CClient, request_id: *const c_char) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, request_id) = unsafe { (reference(client, "client")?, text(request_id, "request_id")?) };
        Ok(client.0.end_session(request_id)?)
    })
}

/// Reserves slots for the chunks of tokens start to end that are not cached.
///
/// # Safety
/// `client` is a client; `prompt` is a prompt with its strings and tokens; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_prepare_store(
    client: *const CClient,
    prompt: *const CPrompt,
    start: u64,
    end: u64,
    out: *mut *mut CStore,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, prompt) = unsafe { (reference(client, "client")?, reference(prompt, "prompt")?) };
        // SAFETY: as above.
        let store = client.0.prepare_store(&unsafe { prompt.to_rust() }?, start..end)?;
        let handle = Box::into_raw(Box::new(CStore(store)));
        // SAFETY: as above.
        unsafe { put(out, handle) }.inspect_err(|_| {
            // SAFETY: made two lines above, and given to nobody.
            drop(unsafe { Box::from_raw(handle) });
        })
    })
}

/// Slots to fill; 0 when everything is cached already, or for null.
///
/// # Safety
/// `store` is a store, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_store_slots(store: *const CStore) -> usize {
    // SAFETY: this function's contract.
    unsafe { store.as_ref() }.map_or(0, |store| store.0.len())
}

/// Slot `slot`: its bytes in the pool, to be written until the commit or the free, and which chunk of the range it is for.
///
/// # Safety
/// `store` is a store that no other thread uses now; the others are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_store_slot(
    store: *mut CStore,
    slot: usize,
    data: *mut *mut u8,
    length: *mut usize,
    chunk: *mut u64,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let store = unsafe { store.as_mut() }.ok_or(Failure::Null("store"))?;
        let number = store.0.chunk(slot).ok_or(Failure::NoSuchSlot)?;
        let bytes = store.0.slot_mut(slot).ok_or(Failure::NoSuchSlot)?;
        // SAFETY: as above.
        unsafe {
            put(data, bytes.as_mut_ptr())?;
            put(length, bytes.len())?;
            put(chunk, number)
        }
    })
}

/// Says when the worker copied, by lmcache_monotonic_ns. Without it, the times of the prepare and of the commit stand.
///
/// # Safety
/// `store` is a store that no other thread uses now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_store_copied(store: *mut CStore, start_ns: u64, end_ns: u64) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let store = unsafe { store.as_mut() }.ok_or(Failure::Null("store"))?;
        store.0.copied(start_ns, end_ns);
        Ok(())
    })
}

/// Makes the chunks readable, and frees the store, whatever comes of it.
///
/// # Safety
/// `store` is a store that was not freed; its slots are not touched any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_store_commit(store: *mut CStore) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let store = unsafe { own(store, "store") }?;
        Ok(store.0.commit()?)
    })
}

/// Frees a store without a commit: nothing is stored. Null is nothing.
///
/// # Safety
/// A store that was not freed, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_store_free(store: *mut CStore) {
    if !store.is_null() {
        bound(|| {
            // SAFETY: this function's contract.
            drop(unsafe { own(store, "store") }?);
            Ok(())
        });
    }
}

/// Pins the chunks of tokens start to end for reading. LMCACHE_STATUS_REFUSED if one is not there.
///
/// # Safety
/// `client` is a client; `prompt` is a prompt with its strings and tokens; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_prepare_retrieve(
    client: *const CClient,
    prompt: *const CPrompt,
    start: u64,
    end: u64,
    out: *mut *mut CRetrieve,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let (client, prompt) = unsafe { (reference(client, "client")?, reference(prompt, "prompt")?) };
        // SAFETY: as above.
        let retrieve = client.0.prepare_retrieve(&unsafe { prompt.to_rust() }?, start..end)?;
        let handle = Box::into_raw(Box::new(CRetrieve(retrieve)));
        // SAFETY: as above.
        unsafe { put(out, handle) }.inspect_err(|_| {
            // SAFETY: made two lines above, and given to nobody.
            drop(unsafe { Box::from_raw(handle) });
        })
    })
}

/// Slots to read, one for each chunk of the range; 0 for null.
///
/// # Safety
/// `retrieve` is a retrieve, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_retrieve_slots(retrieve: *const CRetrieve) -> usize {
    // SAFETY: this function's contract.
    unsafe { retrieve.as_ref() }.map_or(0, |retrieve| retrieve.0.len())
}

/// Chunk `chunk` of the range: its bytes in the pool, to be read until the commit or the free.
///
/// # Safety
/// `retrieve` is a retrieve; the others are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_retrieve_slot(
    retrieve: *const CRetrieve,
    chunk: usize,
    data: *mut *const u8,
    length: *mut usize,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let retrieve = unsafe { reference(retrieve, "retrieve") }?;
        let bytes = retrieve.0.slot(chunk).ok_or(Failure::NoSuchSlot)?;
        // SAFETY: as above.
        unsafe {
            put(data, bytes.as_ptr())?;
            put(length, bytes.len())
        }
    })
}

/// Says when the worker copied, by lmcache_monotonic_ns. Without it, the times of the prepare and of the commit stand.
///
/// # Safety
/// `retrieve` is a retrieve that no other thread uses now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_retrieve_copied(
    retrieve: *mut CRetrieve,
    start_ns: u64,
    end_ns: u64,
) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let retrieve = unsafe { retrieve.as_mut() }.ok_or(Failure::Null("retrieve"))?;
        retrieve.0.copied(start_ns, end_ns);
        Ok(())
    })
}

/// Gives the slots back, and frees the retrieve, whatever comes of it. LMCACHE_STATUS_REFUSED: the copy must not be used.
///
/// # Safety
/// `retrieve` is a retrieve that was not freed; its slots are not touched any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_retrieve_commit(retrieve: *mut CRetrieve) -> Status {
    bound(|| {
        // SAFETY: this function's contract.
        let retrieve = unsafe { own(retrieve, "retrieve") }?;
        Ok(retrieve.0.commit()?)
    })
}

/// Frees a retrieve without a commit; its pins end with the client's next call. Null is nothing.
///
/// # Safety
/// A retrieve that was not freed, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_retrieve_free(retrieve: *mut CRetrieve) {
    if !retrieve.is_null() {
        bound(|| {
            // SAFETY: this function's contract.
            drop(unsafe { own(retrieve, "retrieve") }?);
            Ok(())
        });
    }
}

/// Writes a record of the worker's own into its lane of the shared ring. No system call, no waiting. What became of it, or
/// LMCACHE_PUBLICATION_INVALID for null or a kind that does not exist.
///
/// # Safety
/// `client` is a client, `record` is a record; or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_publish(client: *const CClient, record: *const CRecord) -> Publication {
    // SAFETY: this function's contract.
    let (Some(client), Some(record)) = (unsafe { (client.as_ref(), record.as_ref()) }) else {
        return Publication::Invalid;
    };
    match record.to_rust() {
        Some(record) => client.0.publisher().publish(&record).into(),
        None => Publication::Invalid,
    }
}

/// The clock of records: CLOCK_MONOTONIC in nanoseconds.
#[unsafe(no_mangle)]
pub extern "C" fn lmcache_monotonic_ns() -> u64 {
    monotonic_nanos()
}

/// The number that names a transfer in records.
///
/// # Safety
/// `request_id` is a string; `out` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmcache_transfer_id(
    request_id: *const c_char,
    start: u64,
    end: u64,
    direction: u32,
    out: *mut u64,
) -> Status {
    bound(|| {
        let direction = Direction::from_number(direction).ok_or(Failure::Enum("direction"))?;
        // SAFETY: this function's contract.
        let request_id = unsafe { text(request_id, "request_id") }?;
        // SAFETY: as above.
        unsafe { put(out, transfer_id(request_id, start, end, direction)) }
    })
}
