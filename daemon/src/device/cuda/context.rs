//! A device's primary context, and the allocations of workers that are open in it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUcontext, CUipcMemHandle, CUuuid};
use parking_lot::{Condvar, Mutex};

use super::descriptor::{Handle, Uuid};
use super::driver::{Driver, cuda};
use super::error::{CudaError, OpenError};
use super::kernel::{Kernel, Stagings};
use super::semaphores::Semaphores;

/// Longest wait for a context that is lost or being destroyed.
const DESTROYED_IN: Duration = Duration::from_secs(20);
/// Lanes of one context. A GPU has a few workers at once; each event that never fires keeps one more.
const MAX_WATCHERS: usize = 256;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, which the driver demands.
const LAZY_PEER_ACCESS: u32 = 1;

/// A device as this process counts it.
#[derive(Clone, Debug)]
pub(super) struct Device {
    number: i32,
    /// What metrics call it: `cuda:0`.
    pub(super) label: String,
}

/// The device of this UUID.
fn find(driver: &'static Driver, uuid: Uuid) -> Result<Device, OpenError> {
    let mut seen = Vec::new();
    for ordinal in 0..driver.devices {
        let label = format!("cuda:{ordinal}");
        let failed = |source| OpenError::Driver { device: label.clone(), source };
        let (mut number, mut raw) = (0, CUuuid { bytes: [0; 16] });
        // SAFETY: pointers to our own.
        unsafe {
            cuda!(driver, cuDeviceGet(&mut number, ordinal)).map_err(failed)?;
            cuda!(driver, cuDeviceGetUuid_v2(&mut raw, number)).map_err(failed)?;
        }
        let this = Uuid(raw.bytes.map(|byte| byte as u8));
        if this == uuid {
            return Ok(Device { number, label });
        }
        seen.push(this.to_string());
    }
    Err(OpenError::NotVisible { uuid: uuid.to_string(), seen: seen.join(", ") })
}

/// The contexts of this process. A device's entry goes when its context is destroyed, and not before: until then the driver
/// would give the same one again, with the error that it was let go for.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    known: Mutex<HashMap<Uuid, Known>>,
    gone: Condvar,
}

#[derive(Debug)]
struct Known {
    context: Weak<Context>,
    /// Its own: whether it is lost is asked without holding it, as that might be to let it go.
    failed: Arc<AtomicBool>,
}

impl Contexts {
    /// The context of a device, made if nobody has it; then with the kernel that moves short pieces, if that is wanted.
    pub(super) fn get(
        self: &Arc<Contexts>,
        driver: &'static Driver,
        uuid: Uuid,
        with_kernel: bool,
    ) -> Result<Arc<Context>, OpenError> {
        let until = Instant::now() + DESTROYED_IN;
        let mut known = self.known.lock();
        while let Some(Known { context, failed }) = known.get(&uuid) {
            if !failed.load(Ordering::Acquire)
                && let Some(context) = context.upgrade()
            {
                return Ok(context);
            }
            // Its last user is just destroying it; or it is lost, and its users are letting it go.
            if self.gone.wait_until(&mut known, until).timed_out() {
                return Err(OpenError::Failed(uuid.to_string()));
            }
        }
        let device = find(driver, uuid)?;
        let label = device.label.clone();
        let made = Context::retain(driver, device, uuid, self.clone())
            .map_err(|source| OpenError::Driver { device: label.clone(), source })?;
        tracing::info!(device = label, %uuid, "a GPU is used: its first worker registers");
        let context = Arc::new(made);
        known.insert(uuid, Known { context: Arc::downgrade(&context), failed: context.failed.clone() });
        if with_kernel {
            // Nobody else has the context before the lock is let go.
            context.load_kernel();
        }
        // Before the context, which may go at once.
        drop(known);
        if context.has_failed() { Err(OpenError::Failed(label)) } else { Ok(context) }
    }
}

/// A device's primary context. Kept while a worker on the device is registered.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) device: Device,
    uuid: Uuid,
    all: Arc<Contexts>,
    raw: CUcontext,
    failed: Arc<AtomicBool>,
    /// Who must hear when it is lost.
    watched_by: Mutex<HashMap<u64, Waker>>,
    /// Held for the calls themselves: an open that finds the allocation must not cross a close that unmaps it.
    open: Mutex<HashMap<Handle, Opened>>,
    /// What the device may still be touching after an error; let go when the context is destroyed.
    graveyard: Mutex<Vec<Held>>,
    /// For the events of workers in isolated containers; made when the first asks.
    semaphores: Mutex<Option<Arc<Semaphores>>>,
    /// What moves short pieces, if it is wanted and the driver takes it.
    pub(super) kernel: OnceLock<Kernel>,
    pub(super) stagings: Stagings,
}

/// Called once the context is lost. Must not block.
struct Waker(Box<dyn Fn() + Send>);

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}

/// Somebody hears when a context is lost, until this goes.
#[derive(Debug)]
pub(super) struct Watch {
    context: Arc<Context>,
    number: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.context.watched_by.lock().remove(&self.number);
    }
}

/// Something that is only held.
struct Held(#[expect(dead_code, reason = "held, and dropped in time")] Box<dyn Send>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

#[derive(Debug)]
struct Opened {
    pointer: u64,
    users: usize,
}

// SAFETY: a context is used from any thread that makes it current; the pointer is only a name.
unsafe impl Send for Context {}
// SAFETY: as above; everything that changes is behind locks or atomic.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device, which makes it if nobody has.
    fn retain(
        driver: &'static Driver,
        device: Device,
        uuid: Uuid,
        all: Arc<Contexts>,
    ) -> Result<Context, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a device that the driver has numbered, and a pointer to our own.
        unsafe { cuda!(driver, cuDevicePrimaryCtxRetain(&mut raw, device.number)) }?;
        Ok(Context {
            driver,
            device,
            uuid,
            all,
            raw,
            failed: Arc::default(),
            watched_by: Mutex::default(),
            open: Mutex::default(),
            graveyard: Mutex::default(),
            semaphores: Mutex::default(),
            kernel: OnceLock::new(),
            stagings: Stagings::default(),
        })
    }

    /// Without it all works, and slower. An error that sticks is the end of the context.
    fn load_kernel(self: &Arc<Context>) {
        let loaded = self.enter().and_then(|_current| Kernel::load(self));
        match loaded {
            Ok(kernel) => {
                let _ = self.kernel.set(kernel);
            }
            Err(error) if self.note(error) => {}
            Err(error) => tracing::warn!(
                device = self.device.label,
                %error,
                "the kernel for short pieces cannot be used: they are copied one by one, which is slow"
            ),
        }
    }

    /// Makes it the calling thread's, until the guard goes.
    pub(super) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: retained while `self` lives.
        unsafe { cuda!(self.driver, cuCtxPushCurrent_v2(self.raw)) }?;
        Ok(Entered { context: self, thread: PhantomData })
    }

    /// Whether it had an error that it does not recover from.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Notes an error; one that sticks is the end of the context. Returns whether it is.
    pub(super) fn note(&self, error: CudaError) -> bool {
        if error.sticks() {
            self.give_up(error);
        }
        self.has_failed()
    }

    /// Nothing is done with it any more, because of this error. All who work with it let it go: until the last one has, nobody
    /// can register on its device.
    pub(super) fn give_up(&self, error: CudaError) {
        if self.failed.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(
            device = self.device.label,
            %error,
            "the GPU context is lost: transfers of all workers on this GPU fail until they have registered again; look at the kernel log for Xid errors"
        );
        self.watched_by.lock().values().for_each(|waker| (waker.0)());
    }

    /// `lost` is called when the context is lost; at once, if it is.
    ///
    /// # Errors
    /// How many do, if that is too many.
    pub(super) fn watch(self: &Arc<Context>, lost: impl Fn() + Send + 'static) -> Result<Watch, usize> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut watched_by = self.watched_by.lock();
        if watched_by.len() >= MAX_WATCHERS {
            return Err(watched_by.len());
        }
        // `give_up` looks for wakers after it has set this: what it does not find has been called here.
        if self.has_failed() {
            lost();
        }
        watched_by.insert(number, Waker(Box::new(lost)));
        drop(watched_by);
        Ok(Watch { context: self.clone(), number })
    }

    /// Keeps what the device may still touch until the context is destroyed.
    pub(super) fn bury(&self, held: Box<dyn Send>) {
        self.graveyard.lock().push(Held(held));
    }

    /// The words by which isolated workers are told; made by the first call. The context is current.
    pub(super) fn semaphores(self: &Arc<Context>) -> Result<Arc<Semaphores>, CudaError> {
        let mut semaphores = self.semaphores.lock();
        if let Some(made) = &*semaphores {
            return Ok(made.clone());
        }
        let made = Arc::new(Semaphores::new(self)?);
        *semaphores = Some(made.clone());
        Ok(made)
    }

    /// Opens allocations of workers that are not open yet.
    pub(super) fn map(self: &Arc<Context>, handle: &Handle) -> Result<Mapping, CudaError> {
        let mut open = self.open.lock();
        if let Some(opened) = open.get_mut(handle) {
            opened.users += 1;
            return Ok(Mapping { context: self.clone(), handle: *handle, pointer: opened.pointer });
        }
        let _current = self.enter()?;
        let raw = CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
        let mut pointer = 0;
        // SAFETY: the driver checks the handle; the context is current.
        unsafe { cuda!(self.driver, cuIpcOpenMemHandle_v2(&mut pointer, raw, LAZY_PEER_ACCESS)) }?;
        open.insert(*handle, Opened { pointer, users: 1 });
        Ok(Mapping { context: self.clone(), handle: *handle, pointer })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let is_destroyed = self.destroy();
        let held = std::mem::take(&mut *self.graveyard.lock());
        if is_destroyed {
            drop(held);
        } else {
            // Something may be written to for ever.
            std::mem::forget(held);
        }
        // Who waits for the device may have it.
        self.all.known.lock().remove(&self.uuid);
        self.all.gone.notify_all();
    }
}

impl Context {
    /// Whether nothing of it can run any more.
    fn destroy(&self) -> bool {
        let label = &self.device.label;
        let failed = self.has_failed();
        // SAFETY: retained by us once; nothing of ours uses it any more.
        let released = unsafe { cuda!(self.driver, cuDevicePrimaryCtxRelease_v2(self.device.number)) };
        if !failed && released.is_ok() {
            tracing::info!(device = label, "no worker is left on the GPU; its context is released");
            return true;
        }
        // With its error it would be of no use to the next worker. SAFETY: as above; nobody else in this process has it.
        let destroyed = unsafe { cuda!(self.driver, cuDevicePrimaryCtxReset_v2(self.device.number)) };
        match destroyed {
            Ok(()) => tracing::info!(device = label, "the GPU context is destroyed"),
            // The release was the last, then.
            Err(_) if !self.is_active() => {
                tracing::info!(device = label, "the GPU context is gone");
            }
            Err(error) => {
                tracing::warn!(
                    device = label,
                    %error,
                    "cannot destroy a GPU context; what its GPU might still write stays reserved; if workers on this GPU do not come back, restart the daemon"
                );
                return false;
            }
        }
        true
    }

    /// Whether its device has a context, as far as is known.
    fn is_active(&self) -> bool {
        let (mut flags, mut active) = (0, 1);
        // SAFETY: pointers to our own.
        let known = unsafe {
            cuda!(self.driver, cuDevicePrimaryCtxGetState(self.device.number, &mut flags, &mut active))
        };
        known.is_err() || active != 0
    }
}

/// The context is the calling thread's.
pub(super) struct Entered<'c> {
    context: &'c Context,
    /// What is current is the thread's.
    thread: PhantomData<*mut ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let _ = self.thread;
        let mut popped = std::ptr::null_mut();
        // SAFETY: a pointer to our own; `enter` has pushed it.
        let _ = unsafe { cuda!(self.context.driver, cuCtxPopCurrent_v2(&mut popped)) };
    }
}

/// An allocation of a worker's that is open here; closed with its last user.
#[derive(Debug)]
pub(super) struct Mapping {
    context: Arc<Context>,
    handle: Handle,
    pointer: u64,
}

impl Mapping {
    /// First byte of the allocation.
    pub(super) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Bytes of the allocation. A kernel that goes beyond them is the end of the context, so they must be known.
    pub(super) fn bytes(&self) -> Result<u64, CudaError> {
        let driver = self.context.driver;
        let _current = self.context.enter()?;
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: pointers to our own, and one that is open.
        unsafe { cuda!(driver, cuMemGetAddressRange_v2(&mut base, &mut bytes, self.pointer)) }?;
        // A handle is opened as the whole allocation; this holds if not.
        Ok((base + bytes as u64).saturating_sub(self.pointer))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut open = self.context.open.lock();
        let Some(opened) = open.get_mut(&self.handle) else { return };
        opened.users -= 1;
        if opened.users > 0 {
            return;
        }
        open.remove(&self.handle);
        let closed = self.context.enter().and_then(|_current| {
            // SAFETY: open, and nobody's any more.
            unsafe { cuda!(self.context.driver, cuIpcCloseMemHandle(self.pointer)) }
        });
        if let Err(error) = closed
            && !self.context.note(error)
        {
            tracing::warn!(
                device = self.context.device.label,
                %error,
                "cannot close GPU memory of a worker; it is not free before this daemon ends"
            );
        }
    }
}
