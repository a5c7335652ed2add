//! The configuration file: what it may say, and what a wrong one gets.

use super::{error_of, run};
use crate::config::{Endpoint, EvictionPolicy, Parsed};

struct Toml {
    _dir: tempfile::TempDir,
    flag: String,
}

fn toml(text: &str) -> Toml {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("lmcached.toml");
    std::fs::write(&path, text).expect("file");
    Toml { flag: format!("--config={}", path.display()), _dir: dir }
}

fn read(text: &str, args: &[&str]) -> Parsed {
    let file = toml(text);
    let args: Vec<&str> = std::iter::once(file.flag.as_str()).chain(args.iter().copied()).collect();
    run(&args).unwrap_or_else(|exit| panic!("{text:?}: {exit}"))
}

fn fails(text: &str, args: &[&str]) -> String {
    let file = toml(text);
    let args: Vec<&str> = std::iter::once(file.flag.as_str()).chain(args.iter().copied()).collect();
    error_of(run(&args), text)
}

#[test]
fn keys_are_flags_and_the_command_line_wins() {
    let text = r#"
# A comment.
l1-size-gb = 1.5
chunk-size = 128
eviction-policy = "ARC"
fresh = true
l1-use-hugepages = false
bind = ["ipc:///run/a.sock", "tcp://127.0.0.1:6000"]
service-instance-id = ""
"#;
    let config = read(text, &[]).config;
    assert_eq!(config.l1.size_bytes.map(Into::into), Some(3_u64 << 29));
    assert_eq!(config.server.chunk_size.get(), 128);
    assert_eq!(config.eviction.policy, EvictionPolicy::Arc);
    assert!(config.l1.fresh && !config.l1.use_hugepages);
    assert_eq!(config.server.endpoints.len(), 2);
    assert_eq!(config.observability.instance_id.as_deref(), Some(""));

    let config = read(text, &["--chunk-size", "64", "--bind", "ipc:///run/b.sock"]).config;
    assert_eq!(config.server.chunk_size.get(), 64);
    assert_eq!(config.server.endpoints, [Endpoint::Ipc { path: "/run/b.sock".into() }]);
    assert!(config.l1.fresh, "what the command line does not say, the file does");
    let config = read("l1-use-hugepages = true", &["--no-l1-use-hugepages"]).config;
    assert!(!config.l1.use_hugepages, "the opposite flag wins, too");
}

#[test]
fn a_port_of_the_file_is_as_good_as_one_of_a_flag() {
    assert!(read("http-port = 8081", &[]).config.http.listen.port_is_explicit);
    assert!(!read("", &[]).config.http.listen.port_is_explicit);
}

#[test]
fn adapters_are_tables() {
    let text = "[[l2-adapter]]\ntype = \"fs\"\nbase_path = \"/data\"\n[[l2-adapter]]\ntype = \"resp\"\nhost = \"h\"\nport = 6379\n";
    let parsed = read(text, &[]);
    let debug = format!("{:?}", parsed.config.l2);
    assert!(debug.contains("base_path") && debug.contains("port"), "{debug}");
}

#[test]
fn classes_hold_for_keys_as_for_flags() {
    assert_eq!(read("max-workers = 4", &[]).notices.len(), 1);
    let line = fails("# one\ntransport = \"grpc\"", &[]);
    assert!(line.contains("lmcached.toml:2: --transport grpc is refused"), "{line}");
}

#[test]
fn what_is_wrong_is_one_line_with_file_and_line() {
    for (text, words) in [
        ("\n\nl1-size = 4", &["lmcached.toml:3:", "unknown key l1-size", "did you mean l1-size-gb?"][..]),
        ("l1_size_gb = 4", &["lmcached.toml:1:", "did you mean l1-size-gb?"]),
        ("frobnicate = 1", &["lmcached.toml:1:", "unknown key frobnicate", "--help"]),
        ("help = true", &["lmcached.toml:1:", "unknown key help"]),
        ("config = \"x\"", &["lmcached.toml:1:", "cannot name another"]),
        ("fresh = 1", &["lmcached.toml:1:", "fresh must be true or false"]),
        ("port = true", &["lmcached.toml:1:", "port must be"]),
        ("port = [1]", &["lmcached.toml:1:", "not a list"]),
        ("bind = [[1]]", &["lmcached.toml:1:", "bind must be a list"]),
        ("port = 1979-05-27", &["lmcached.toml:1:", "port must be"]),
        ("\nport = 70000", &["lmcached.toml:2:", "--port 70000", "0 to 65535"]),
        ("chunk-size = \"many\"", &["lmcached.toml:1:", "--chunk-size many"]),
        ("eviction-policy = \"FIFO\"", &["lmcached.toml:1:", "FIFO", "LRU"]),
        ("port = 1\nport = 2", &["lmcached.toml:2:", "duplicate"]),
        ("port = ", &["lmcached.toml:1:"]),
        ("[server]\nport = 1", &["lmcached.toml:1:", "unknown key server"]),
    ] {
        let line = fails(text, &[]);
        for word in words {
            assert!(line.contains(word), "{text:?}: {word:?} is missing in {line:?}");
        }
    }
    let line = error_of(run(&["--config=/no/such/file"]), "missing file");
    assert!(line.contains("/no/such/file") && line.contains("cannot be read"), "{line}");
    let line = fails(&"#".repeat(2 << 20), &[]);
    assert!(line.contains("larger than a megabyte"), "{line}");
    let line = fails("port = 80", &["--chunk-size=0"]);
    assert!(!line.contains("lmcached.toml"), "the flag is wrong, not the file: {line}");
}

#[test]
fn secrets_of_the_file_are_never_repeated() {
    let line = fails("l2-adapter = [{type = \"hunter2\"}]", &[]);
    assert!(line.contains("lmcached.toml:1:") && !line.contains("hunter2"), "{line}");
}
