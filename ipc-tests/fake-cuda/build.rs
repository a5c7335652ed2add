//! Builds the daemon's kernel for the CPU.

fn main() {
    println!("cargo:rerun-if-changed=src/kernel.c");
    println!("cargo:rerun-if-changed=../../daemon/src/device/cuda/kernel/move.cu");
    cc::Build::new().file("src/kernel.c").opt_level(2).compile("lmcached_move");
}
