//! The daemon: flags and nothing else.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Under load from many threads the C library's heaps fill gaps that they do not give back: with the same bytes in use the
/// process grew by 2 % in an hour (docs/TESTING.md, Soak).
#[cfg(all(feature = "jemalloc", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let parsed = match lmcached::config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(exit) => {
            let code = exit.code();
            if code == 0 {
                print!("{exit}");
            } else {
                eprintln!("{exit}");
            }
            return ExitCode::from(code);
        }
    };
    // First of all: it takes variables out of the environment, which only a process of one thread may do.
    let sockets = match lmcached::systemd::Sockets::take() {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("lmcached: {error}");
            return ExitCode::from(1);
        }
    };
    let observability = &parsed.config.observability;
    let started = lmcached::telemetry::Outlet::new(observability).and_then(|outlet| {
        let guard = lmcached::logging::start(observability, &outlet)?;
        Ok((outlet, guard))
    });
    let (outlet, logging) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("lmcached: {error}");
            return ExitCode::from(1);
        }
    };
    let result = lmcached::handover::Program::own()
        .map_err(lmcached::app::AppError::Runtime)
        .and_then(|program| Ok((program, lmcached::handover::Heir::from_environment(&parsed.config)?)))
        .and_then(|(program, heir)| {
            let start = lmcached::app::Start { sockets, heir, program, levels: &logging.levels };
            lmcached::app::run(&parsed.config, &parsed.notices, &outlet, start)
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lmcached: {error}");
            ExitCode::from(1)
        }
    }
}
