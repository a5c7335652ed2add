//! An engine's side of GPU memory, for tests: does one command of a line at a time and answers with a line. The driver that it
//! finds may be the real one or the tests' own.
#![allow(unsafe_code, reason = "it calls the driver")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::driver::sys::{
    CUcontext, CUevent, CUipcEventHandle, CUipcMemHandle, CUresult, CUstream, CUuuid, cuCtxPushCurrent_v2,
    cuDeviceGet, cuDeviceGetUuid_v2, cuDevicePrimaryCtxRetain, cuEventCreate, cuEventDestroy_v2,
    cuEventQuery, cuEventRecord, cuInit, cuIpcGetEventHandle, cuIpcGetMemHandle, cuIpcOpenEventHandle,
    cuIpcOpenMemHandle_v2, cuLaunchHostFunc, cuMemAlloc_v2, cuMemFree_v2, cuMemHostRegister_v2,
    cuMemHostUnregister, cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2, cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2,
    cuStreamCreate, cuStreamSynchronize, cuStreamWaitEvent, cuStreamWaitValue64_v2, cuStreamWriteValue64_v2,
    is_culib_present,
};
use ipc_tests::call::{self, hex, unhex};
use lmcache_client::Connection;
use lmcache_proto::wire::{Operation, Request};

fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

static HELD: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn hold(_: *mut c_void) {
    while HELD.load(Ordering::Acquire) {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

struct Worker {
    stream: CUstream,
    uuid: [u8; 16],
    memory: HashMap<u64, (u64, usize)>,
    next: u64,
    /// Exported events stay until the end, as an engine keeps them.
    events: Vec<CUevent>,
    /// Memory with words: pointer, handle, last value.
    words: Option<(u64, [u8; 64], u64)>,
    opened: HashMap<Vec<u8>, u64>,
    runtime: tokio::runtime::Runtime,
    connection: Option<Connection>,
}

impl Worker {
    fn new(ordinal: i32) -> Worker {
        let (mut device, mut context, mut stream): (i32, CUcontext, CUstream) =
            (0, std::ptr::null_mut(), std::ptr::null_mut());
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: pointers to our own.
        unsafe {
            ok(cuInit(0));
            ok(cuDeviceGet(&mut device, ordinal));
            ok(cuDeviceGetUuid_v2(&mut uuid, device));
            ok(cuDevicePrimaryCtxRetain(&mut context, device));
            ok(cuCtxPushCurrent_v2(context));
            ok(cuStreamCreate(&mut stream, 1));
        }
        let uuid = uuid.bytes.map(|byte| byte as u8);
        let (memory, opened) = (HashMap::new(), HashMap::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (events, words, connection) = (Vec::new(), None, None);
        Worker { stream, uuid, memory, next: 0, events, words, opened, runtime, connection }
    }

    fn handle_of(pointer: u64) -> [u8; 64] {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: a pointer to our own.
        unsafe { ok(cuIpcGetMemHandle(&mut handle, pointer)) };
        handle.reserved.map(|byte| byte as u8)
    }

    fn alloc(&mut self, bytes: usize) -> String {
        let mut pointer = 0;
        // SAFETY: a pointer to our own.
        unsafe { ok(cuMemAlloc_v2(&mut pointer, bytes)) };
        self.next += 1;
        self.memory.insert(self.next, (pointer, bytes));
        // At the beginning of its allocation, and exported as torch 2 does it.
        let handle = Worker::handle_of(pointer);
        format!("{} {} 0 {}", self.next, hex(&handle), hex(&[&[2, b'c'][..], &handle].concat()))
    }

    fn event(&mut self) -> String {
        let mut event = std::ptr::null_mut();
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: pointers to our own.
        unsafe {
            ok(cuEventCreate(&mut event, 6));
            ok(cuEventRecord(event, self.stream));
            ok(cuIpcGetEventHandle(&mut handle, event));
        }
        self.events.push(event);
        hex(&handle.reserved.map(|byte| byte as u8))
    }

    fn word(&mut self) -> String {
        let (pointer, handle, value) = self.words.get_or_insert_with(|| {
            let mut pointer = 0;
            // SAFETY: pointers to our own.
            unsafe {
                ok(cuMemAlloc_v2(&mut pointer, 32 << 10));
                ok(cuMemcpyHtoD_v2(pointer, vec![0u8; 32 << 10].as_ptr().cast(), 32 << 10));
            }
            (pointer, Worker::handle_of(pointer), 0)
        });
        *value += 1;
        // SAFETY: memory of ours.
        unsafe { ok(cuStreamWriteValue64_v2(self.stream, *pointer + 16, *value, 0)) };
        let mut bytes = vec![1u8];
        bytes.extend_from_slice(handle);
        bytes.extend_from_slice(&16u64.to_be_bytes());
        bytes.extend_from_slice(&value.to_be_bytes());
        hex(&bytes)
    }

    /// Waits for an event of the daemon's: whether it had fired already.
    fn wait(&mut self, handle: &[u8]) -> String {
        if let Ok(raw) = <[u8; 64]>::try_from(handle) {
            let mut event = std::ptr::null_mut();
            // SAFETY: pointers to our own.
            let fired = unsafe {
                ok(cuIpcOpenEventHandle(
                    &mut event,
                    CUipcEventHandle { reserved: raw.map(|byte| byte as _) },
                ));
                let fired = cuEventQuery(event) == CUresult::CUDA_SUCCESS;
                ok(cuStreamWaitEvent(self.stream, event, 0));
                ok(cuStreamSynchronize(self.stream));
                ok(cuEventDestroy_v2(event));
                fired
            };
            return format!("{fired}");
        }
        assert_eq!((handle.len(), handle[0]), (81, 1));
        let memory = *self.opened.entry(handle[1..65].to_vec()).or_insert_with(|| {
            let raw = CUipcMemHandle { reserved: std::array::from_fn(|at| handle[1 + at] as _) };
            let mut pointer = 0;
            // SAFETY: a pointer to our own.
            unsafe { ok(cuIpcOpenMemHandle_v2(&mut pointer, raw, 1)) };
            pointer
        });
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| handle[at + byte]));
        let (address, value, mut now) = (memory + number(65), number(73), 0u64);
        // SAFETY: memory that stays open, and a word of our own.
        unsafe {
            ok(cuMemcpyDtoH_v2((&raw mut now).cast(), address, 8));
            ok(cuStreamWaitValue64_v2(self.stream, address, value, 0));
            ok(cuStreamSynchronize(self.stream));
        }
        format!("{}", now >= value)
    }

    /// Sends a request to a daemon on a connection of its own, and says what it answers.
    fn call(&mut self, endpoint: &str, operation: &str, path: &str) -> String {
        let operation = Operation::all().find(|known| known.name() == operation).expect("an operation");
        let file = std::fs::read(path).expect("a file");
        let frames = call::frames(&file);
        let request = Request::decode(operation, &frames).expect("a request");
        let answer = self.runtime.block_on(async {
            if self.connection.is_none() {
                let opened = Connection::connect(endpoint, Duration::from_secs(30)).await;
                self.connection = Some(opened.expect("the daemon accepts clients"));
            }
            self.connection.as_mut().expect("opened").call(&request).await
        });
        match answer {
            Ok(answer) => call::line(&answer),
            Err(error) => {
                // The daemon has gone: the next call finds another.
                self.connection = None;
                format!("error {error}")
            }
        }
    }

    /// Nanoseconds that the bus takes for `count` copies of `bytes` each: out of GPU memory into pinned memory, in, or both ways
    /// at once in two streams.
    fn raw(&mut self, way: &str, bytes: usize, count: usize) -> String {
        let (out, back) = (way != "in", way != "out");
        let mut host = vec![0u8; 2 * bytes * count + 4096];
        let skew = host.as_ptr().align_offset(4096);
        let host = &mut host[skew..];
        let (mut device, mut second): (u64, CUstream) = (0, std::ptr::null_mut());
        // SAFETY: memory of these lengths, which stays until all copies are over.
        unsafe {
            ok(cuMemAlloc_v2(&mut device, 2 * bytes * count));
            ok(cuStreamCreate(&mut second, 1));
            let registered = host.len() / 4096 * 4096;
            ok(cuMemHostRegister_v2(host.as_mut_ptr().cast(), registered, 0));
            let mut best = u128::MAX;
            for _ in 0..5 {
                let begun = std::time::Instant::now();
                for at in 0..count {
                    let (first, other) = (at * bytes, (count + at) * bytes);
                    if out {
                        let to = host.as_mut_ptr().add(first).cast();
                        ok(cuMemcpyDtoHAsync_v2(to, device + first as u64, bytes, self.stream));
                    }
                    if back {
                        let from = host.as_ptr().add(other).cast();
                        ok(cuMemcpyHtoDAsync_v2(device + other as u64, from, bytes, second));
                    }
                }
                ok(cuStreamSynchronize(self.stream));
                ok(cuStreamSynchronize(second));
                best = best.min(begun.elapsed().as_nanos());
            }
            ok(cuMemHostUnregister(host.as_mut_ptr().cast()));
            ok(cuMemFree_v2(device));
            format!("{best}")
        }
    }

    fn execute(&mut self, words: &[&str]) -> String {
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "uuid" => hex(&self.uuid),
            "alloc" => self.alloc(number(1) as usize),
            "free" => {
                let (pointer, _) = self.memory.remove(&number(1)).expect("allocated");
                // SAFETY: allocated, and nobody's any more.
                unsafe { ok(cuMemFree_v2(pointer)) };
                "ok".to_owned()
            }
            "load" => {
                let (pointer, bytes) = self.memory[&number(1)];
                let data = std::fs::read(words[2]).expect("a file");
                assert_eq!(data.len(), bytes);
                // SAFETY: an allocation of that length.
                unsafe { ok(cuMemcpyHtoD_v2(pointer, data.as_ptr().cast(), bytes)) };
                "ok".to_owned()
            }
            "dump" => {
                let (pointer, bytes) = self.memory[&number(1)];
                let mut data = vec![0u8; bytes];
                // SAFETY: an allocation of that length.
                unsafe { ok(cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), pointer, bytes)) };
                std::fs::write(words[2], data).expect("a file");
                "ok".to_owned()
            }
            "event" => self.event(),
            "word" => self.word(),
            "wait" => self.wait(&unhex(words[1])),
            "hold" => {
                HELD.store(true, Ordering::Release);
                // SAFETY: the function takes nothing.
                unsafe { ok(cuLaunchHostFunc(self.stream, Some(hold), std::ptr::null_mut())) };
                "ok".to_owned()
            }
            "go" => {
                HELD.store(false, Ordering::Release);
                "ok".to_owned()
            }
            "raw" => self.raw(words[1], number(2) as usize, number(3) as usize),
            "call" => self.call(words[1], words[2], words[3]),
            other => panic!("what is {other}?"),
        }
    }
}

fn main() {
    // SAFETY: opens the driver, if there is one.
    if !unsafe { is_culib_present() } {
        eprintln!("no libcuda.so.1");
        std::process::exit(3);
    }
    let ordinal = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut worker = Worker::new(ordinal);
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").and_then(|()| out.flush()).expect("stdout");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer = worker.execute(&line.split_whitespace().collect::<Vec<&str>>());
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("stdout");
    }
}
