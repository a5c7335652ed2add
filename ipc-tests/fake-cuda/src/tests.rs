//! Where the driver refuses what is confused, so does this one: what the daemon's tests pass with it, they would not pass by luck.

use std::ffi::{c_int, c_void};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::ptr::null_mut;

use crate::code::*;
use crate::context::*;
use crate::event::*;
use crate::memory::*;
use crate::state::RawHandle;
use crate::stream::*;

/// The primary context of a device, current while this lives.
struct Current(c_int);

impl Current {
    fn of(device: c_int) -> Current {
        let mut context = null_mut();
        // SAFETY: pointers to our own.
        unsafe {
            assert_eq!(cuInit(0), SUCCESS);
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), SUCCESS);
            assert_eq!(cuCtxPushCurrent_v2(context), SUCCESS);
        }
        Current(device)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: retained and pushed above.
        unsafe {
            cuCtxPopCurrent_v2(null_mut());
            cuDevicePrimaryCtxRelease_v2(self.0);
        }
    }
}

fn stream() -> *mut c_void {
    let mut stream = null_mut();
    // SAFETY: a pointer to our own.
    assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, SUCCESS);
    stream
}

fn event(flags: u32) -> *mut c_void {
    let mut event = null_mut();
    // SAFETY: a pointer to our own.
    assert_eq!(unsafe { cuEventCreate(&mut event, flags) }, SUCCESS);
    event
}

/// Another process with memory on the first device: its handles of that and of an event.
struct Exporter {
    child: Child,
    /// It still writes to it when it ends.
    _output: BufReader<ChildStdout>,
    memory: [u8; 64],
    event: [u8; 64],
}

impl Exporter {
    fn start() -> Exporter {
        let mut child = Command::new(std::env::current_exe().expect("a program"))
            .args(["--ignored", "--exact", "tests::exports_until_its_input_ends", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let lines = (&mut output).lines().map_while(Result::ok);
        let mut handles = lines.filter_map(|line| Some(line.split_once("handle ")?.1.to_owned()));
        let mut handle = || {
            let text = handles.next().expect("a handle");
            std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex"))
        };
        let (memory, event) = (handle(), handle());
        drop(handles);
        Exporter { child, _output: output, memory, event }
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("ended");
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
#[ignore = "a process of the other tests"]
fn exports_until_its_input_ends() {
    let _current = Current::of(0);
    let (mut pointer, mut memory, mut exported) = (0, [0; 64], [0; 64]);
    let event = event(6);
    // SAFETY: pointers to our own.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut pointer, 4096), SUCCESS);
        assert_eq!(cuIpcGetMemHandle(&mut memory, pointer), SUCCESS);
        assert_eq!(cuIpcGetEventHandle(&mut exported, event), SUCCESS);
    }
    for handle in [memory, exported] {
        let hex: String = handle.iter().map(|byte| format!("{byte:02x}")).collect();
        // The harness may have begun a line.
        println!("\nhandle {hex}");
    }
    let _ = std::io::stdin().read(&mut [0]);
    // SAFETY: made above.
    unsafe { cuEventDestroy_v2(event) };
}

fn open(handle: [u8; 64]) -> (u32, u64) {
    let mut pointer = 0;
    // SAFETY: a pointer to our own.
    (unsafe { cuIpcOpenMemHandle_v2(&mut pointer, RawHandle(handle), 1) }, pointer)
}

#[test]
fn without_a_context_nothing_is_made() {
    // SAFETY: pointers to our own.
    unsafe {
        assert_eq!(cuInit(0), SUCCESS);
        assert_eq!(cuMemAlloc_v2(&mut 0, 64), INVALID_CONTEXT);
        assert_eq!(cuStreamCreate(&mut null_mut(), 1), INVALID_CONTEXT);
        assert_eq!(cuCtxPushCurrent_v2(8 as *mut c_void), INVALID_CONTEXT);
    }
}

#[test]
fn what_is_of_another_context_is_refused() {
    let _first = Current::of(0);
    let (of_first, timed) = (stream(), event(0));
    let exporter = Exporter::start();
    let (opened, pointer) = open(exporter.memory);
    assert_eq!(opened, SUCCESS);
    {
        let _second = Current::of(1);
        let of_second = stream();
        // SAFETY: streams and events as they were made.
        unsafe {
            assert_eq!(cuStreamSynchronize(of_first), INVALID_HANDLE);
            assert_eq!(cuEventRecord(timed, of_second), INVALID_HANDLE, "an event of the first");
            assert_eq!(cuEventRecord(event(0), of_first), INVALID_HANDLE, "a stream of the first");
            assert_eq!(cuIpcCloseMemHandle(pointer), INVALID_CONTEXT);
            // It may be waited for.
            assert_eq!(cuStreamWaitEvent(of_second, timed, 0), SUCCESS);
        }
        assert_eq!(open(exporter.memory).0, PEER_ACCESS_UNSUPPORTED, "memory of the first device");
    }
    // SAFETY: as above.
    unsafe {
        assert_eq!(cuEventRecord(timed, of_first), SUCCESS);
        assert_eq!(cuIpcCloseMemHandle(pointer), SUCCESS);
        assert_eq!(cuIpcCloseMemHandle(pointer), INVALID_VALUE, "closed already");
    }
}

#[test]
fn handles_are_refused_in_their_own_process_and_when_it_is_dead() {
    let _current = Current::of(0);
    let (mut own, mut pointer) = ([0; 64], 0);
    // SAFETY: pointers to our own.
    unsafe {
        assert_eq!(cuMemAlloc_v2(&mut pointer, 4096), SUCCESS);
        assert_eq!(cuIpcGetMemHandle(&mut own, pointer), SUCCESS);
        assert_eq!(cuMemFree_v2(pointer), SUCCESS);
    }
    assert_eq!(open(own).0, INVALID_CONTEXT);
    let mut exporter = Exporter::start();
    // Counted, unless the driver is an old one.
    let (first, second) = (open(exporter.memory), open(exporter.memory));
    assert_eq!(((first.0, second.0), first.1), ((SUCCESS, SUCCESS), second.1));
    exporter.end();
    // SAFETY: opened twice; pointers to our own.
    unsafe {
        assert_eq!(cuIpcCloseMemHandle(first.1), SUCCESS);
        assert_eq!(cuIpcCloseMemHandle(first.1), SUCCESS);
        assert_eq!(open(exporter.memory).0, INVALID_HANDLE, "a stale handle");
        let mut event = null_mut();
        assert_eq!(cuIpcOpenEventHandle(&mut event, RawHandle(exporter.event)), INVALID_HANDLE);
        assert_eq!(cuIpcOpenEventHandle(&mut event, RawHandle(exporter.memory)), INVALID_HANDLE);
    }
}

#[test]
#[ignore = "the other half of the next"]
fn opens_a_handle_that_is_open() {
    let _current = Current::of(0);
    let exporter = Exporter::start();
    let (opened, pointer) = open(exporter.memory);
    assert_eq!((opened, open(exporter.memory).0), (SUCCESS, ALREADY_MAPPED));
    // SAFETY: opened once.
    assert_eq!(unsafe { cuIpcCloseMemHandle(pointer) }, SUCCESS);
    assert_eq!(open(exporter.memory).0, SUCCESS, "closed, so it may be opened again");
}

#[test]
fn an_old_driver_does_not_open_what_is_open() {
    let half = Command::new(std::env::current_exe().expect("a program"))
        .args(["--ignored", "--exact", "tests::opens_a_handle_that_is_open"])
        .env("FAKE_CUDA_OPEN", "once")
        .output()
        .expect("runs");
    let output = String::from_utf8_lossy(&half.stdout);
    assert!(half.status.success() && output.contains("1 passed"), "{output}");
}
