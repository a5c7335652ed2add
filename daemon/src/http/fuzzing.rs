//! The admin API behind its real HTTP parser, on a connection in memory.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lmcache_proto::fuzzing::Input;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::guard::Token;
use super::serve::WithPath;
use super::{Admin, AdminParts, EventStreams, Guard, routes};
use crate::config;
use crate::engine::Engine;
use crate::engine::alone::CHUNK;
use crate::events::Bus;
use crate::l1::{L1, L1Config, Pin};
use crate::logging;
use crate::periodic::Periodic;
use crate::server::{Server, ServerConfig};
use crate::telemetry::{self, Outlet};

const HOUR: Duration = Duration::from_secs(3600);
/// Ends a request that hangs, which is a finding.
const HANG: Duration = Duration::from_secs(30);
/// Most of an answer: a page of metrics is a tenth of it.
const ANSWER: usize = 4 << 20;

/// An admin API without a daemon around it.
struct World {
    runtime: Runtime,
    open: Arc<Admin>,
    guarded: Arc<Admin>,
}

fn engine() -> (Arc<L1>, Arc<Engine>) {
    let l1 = L1::open(&L1Config {
        chunk_size: CHUNK,
        fresh: true,
        ..L1Config::new(format!("lmcached_fuzz_http_{}", std::process::id()), 1 << 20)
    });
    let l1 = Arc::new(l1.expect("memory for a small pool").0);
    // The memory stays, the names go: nobody is left to remove them.
    l1.discard();
    l1.reserve_memory().expect("memory for a small pool");
    let cells = (0..8).map(|number| ([number; 32], 0, 0));
    let reserved = l1.reserve("org/model", "tenant", cells, 7, 4096, None).expect("room");
    l1.commit(&reserved.iter().map(|object| object.pin).collect::<Vec<Pin>>());
    let engine = Engine::alone(l1.clone(), HOUR, 0);
    (l1, engine)
}

fn world() -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    let runtime = runtime.expect("a runtime");
    let _inside = runtime.enter();
    let (_, engine) = engine();
    let args = ["lmcached", "--disable-observability"].map(OsString::from);
    let config = config::parse(args).expect("a command line").config;
    let outlet = Outlet::new(&config.observability).expect("no collector");
    let telemetry = telemetry::start(&config.observability, &outlet).expect("no collector").telemetry;
    let server = Server::new(
        engine.clone(),
        ServerConfig {
            max_message_bytes: 1 << 20,
            max_peer_bytes: 1 << 20,
            max_total_bytes: 1 << 20,
            max_connections: 8,
            max_peer_requests_per_second: 0,
            handshake_timeout: HOUR,
            message_timeout: HOUR,
        },
        crate::systemd::Supervisor::nobody(),
        crate::server::Threads::here(),
    );
    let admin = |guard: Guard| {
        let parts = AdminParts {
            engine: engine.clone(),
            server: server.clone(),
            telemetry: telemetry.clone(),
            bus: Bus::disabled(),
            events: Arc::new(EventStreams::default()),
            periodic: Arc::new(Periodic::default()),
            levels: logging::unheard_levels(),
            guard,
            http: Arc::default(),
            hash_algorithm: "blake3",
        };
        Arc::new(Admin::new(&config, parts))
    };
    let open = admin(Guard::new(true, None));
    let guarded = admin(Guard::new(false, Some(Token::fuzzers())));
    drop(_inside);
    World { runtime, open, guarded }
}

/// Connections to the API: what a client sends, in pieces, and then nothing more.
pub fn http(data: &[u8]) {
    // To add an adapter is to open any path or address of the machine; its JSON is a target of its own. The route is
    // matched as it stands in the request, so whatever would get there has these bytes.
    if data.windows(9).any(|window| window == b"/adapters") && data.windows(4).any(|window| window == b"POST")
    {
        return;
    }
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = WORLD.get_or_init(world);
    let mut input = Input::new(data);
    let (kind, piece) = (input.byte(), usize::from(input.byte()) + 1);
    let guarded = kind & 1 == 1;
    let admin = if guarded { &world.guarded } else { &world.open };
    let request = input.rest();
    let answer = world.runtime.block_on(async {
        tokio::time::timeout(HANG, exchange(admin.clone(), request, piece)).await.expect("the request hangs")
    });
    check(&answer, guarded);
}

async fn exchange(admin: Arc<Admin>, request: &[u8], piece: usize) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(64 << 10);
    let (mut answers, mut requests) = tokio::io::split(client);
    let service = WithPath(TowerToHyperService::new(warp::service(routes::admin(admin))));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANG);
    let serve = http.serve_connection(TokioIo::new(server), service);
    let send = async {
        for bytes in request.chunks(piece) {
            // An error: the server has had enough.
            if requests.write_all(bytes).await.is_err() {
                break;
            }
        }
        let _ = requests.shutdown().await;
    };
    let mut answer = Vec::new();
    let receive = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read) = answers.read(&mut buffer).await
            && read > 0
        {
            answer.extend_from_slice(&buffer[..read]);
            // One request has at most one page of answer, and a request has sixteen bytes.
            assert!(answer.len() < ANSWER * (1 + request.len() / 16), "an answer without an end");
        }
    };
    let _ = tokio::join!(serve, send, receive);
    answer
}

/// Every answer begins as one, and none is an error of the server's own making.
fn check(answer: &[u8], guarded: bool) {
    let first = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if first.is_empty() {
        return;
    }
    let status = first.strip_prefix(b"HTTP/1.1 ").or_else(|| first.strip_prefix(b"HTTP/1.0 "));
    let status = status.and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse::<u16>().ok());
    let status = status.expect("an answer begins with its status");
    // 100 is "go on, send the body"; 503 is not ready, or nothing to do it with. 500 would be a panic.
    assert!(status == 100 || (status != 500 && (200..=503).contains(&status)), "status {status}");
    if guarded && status == 200 {
        let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &answer[at + 4..]);
        // Without the token: probes and numbers only. The object's salt is in no answer.
        assert!(
            !body.unwrap_or_default().windows(10).any(|window| window == b"\"org/model"),
            "told without a token"
        );
    }
}
