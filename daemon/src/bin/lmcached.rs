//! The daemon: flags and nothing else.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let parsed = match lmcached::config::parse(std::env::args_os()).and_then(|parsed| parsed.refuse_not_yet())
    {
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
    lmcached::logging::start(parsed.config.observability.log_level);
    match lmcached::app::run(&parsed.config, &parsed.notices) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lmcached: {error}");
            ExitCode::from(1)
        }
    }
}
