//! The copy's speed against `memcpy` of the same bytes in the same block sizes; run by hand with `--release`.

use std::hint::black_box;
use std::time::Instant;

use super::super::copy::{ObjectMut, ObjectRef};
use super::*;

const BLOCKS: u64 = 2048;
const PER_CHUNK: usize = 16;
const BLOCK_BYTES: usize = 16 * 8 * 128 * 2;

#[test]
#[ignore = "measures; run with --release -- --ignored --nocapture"]
fn ratio_to_memcpy() {
    let shape = [2, BLOCKS, 16, 8, 128];
    let elements: u64 = shape.iter().product();
    let worker = Worker::new(4 * elements * 2);
    let data = vec![0x5a; 1 << 20];
    for at in 0..(4 * elements * 2) >> 20 {
        worker.file.write_all_at(&data, at << 20).expect("touch");
    }
    for order in ["NHD", "HND"] {
        let strides = match order {
            "NHD" => dense(&shape),
            _ => vec![BLOCKS * 16 * 8 * 128, 16 * 8 * 128, 128, 16 * 128, 1],
        };
        let tensors = (0..4).map(|layer| {
            worker.tensor(4 * elements * 2, metadata("float16", &shape, &strides, layer * elements))
        });
        let registration = Registration::new(&request(tensors.collect(), hints(Some(order))), &options(256))
            .expect("registers");
        // Blocks in an order without neighbours: the worst case for merging.
        let ids = vec![(0..BLOCKS).map(|at| at * 37 % BLOCKS).collect::<Vec<u64>>()];
        let chunks = BLOCKS / PER_CHUNK as u64;
        let bytes = 4 * 2 * PER_CHUNK * BLOCK_BYTES;
        // Page-aligned like the pool's slots.
        let mut buffer = vec![1u8; bytes * chunks as usize + 4096];
        let skew = buffer.as_ptr().align_offset(4096);
        let object = &mut buffer[skew..][..bytes * chunks as usize];
        let plain = worker_copy(&registration, &ids[0], object);
        let mut store = Vec::new();
        let mut retrieve = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            for chunk in 0..chunks {
                let slot = &mut object[chunk as usize * bytes..][..bytes];
                let plan = registration.plan(0, &ids, chunk, 0).expect("plan");
                // SAFETY: a private buffer of that length.
                let mut slot = unsafe { ObjectMut::new(slot.as_mut_ptr(), slot.len()) };
                black_box(registration.store(&plan, &mut slot).expect("store"));
            }
            store.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            for chunk in 0..chunks {
                let slot = &object[chunk as usize * bytes..][..bytes];
                let plan = registration.plan(0, &ids, chunk, 0).expect("plan");
                // SAFETY: a private buffer of that length.
                let slot = unsafe { ObjectRef::new(slot.as_ptr(), slot.len()) };
                black_box(registration.retrieve(&plan, slot).expect("retrieve"));
            }
            retrieve.push(start.elapsed().as_secs_f64());
        }
        let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let gib = (bytes as u64 * chunks) as f64 / (1u64 << 30) as f64;
        println!(
            "{order}: memcpy of 32 KiB blocks out {:.2} GiB/s, in {:.2} GiB/s; \
             store {:.2} GiB/s (ratio {:.2}), retrieve {:.2} GiB/s (ratio {:.2})",
            gib / plain.0,
            gib / plain.1,
            gib / best(&store),
            best(&store) / plain.0,
            gib / best(&retrieve),
            best(&retrieve) / plain.1,
        );
    }
}

/// Seconds to copy the same blocks out of and into the same segment with nothing but `memcpy` of a block.
fn worker_copy(registration: &Registration, ids: &[u64], object: &mut [u8]) -> (f64, f64) {
    let shm = registration.shm();
    let (mut out, mut back) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..7 {
        for direction in [true, false] {
            let start = Instant::now();
            let mut to = 0;
            for chunk in ids.chunks(PER_CHUNK) {
                for plane in 0..2 {
                    for layer in 0..4 {
                        let base = shm.tensor(layer).expect("mapped").start;
                        let base = base.wrapping_add(
                            (layer as u64 * 2 + plane) as usize * BLOCKS as usize * BLOCK_BYTES,
                        );
                        for id in chunk {
                            let tensor = base.wrapping_add(*id as usize * BLOCK_BYTES);
                            let side = object[to..to + BLOCK_BYTES].as_mut_ptr();
                            let (from, into) = if direction { (tensor, side) } else { (side, tensor) };
                            // SAFETY: a block of the mapped segment and as many bytes of a private buffer.
                            unsafe { std::ptr::copy_nonoverlapping(black_box(from), into, BLOCK_BYTES) };
                            to += BLOCK_BYTES;
                        }
                    }
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            if direction { out = out.min(seconds) } else { back = back.min(seconds) }
        }
    }
    (out, back)
}
