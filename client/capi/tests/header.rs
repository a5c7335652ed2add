//! The checked-in header is what cbindgen makes of the sources.

use std::path::Path;

/// Run with `LMCACHE_WRITE_HEADER=1` to write the header after a change.
#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("configuration");
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/status.rs"))
        .with_src(root.join("src/types.rs"))
        .with_src(root.join("src/lib.rs"))
        .generate()
        .expect("sources parse");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("text");
    let path = root.join("include/lmcache_client.h");
    if std::env::var_os("LMCACHE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("write");
    }
    let checked_in = std::fs::read_to_string(&path).expect("the header is checked in");
    assert_eq!(checked_in, made, "run LMCACHE_WRITE_HEADER=1 cargo test -p lmcache-client-c");
}
