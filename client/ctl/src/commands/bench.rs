//! `bench`: workers that store and retrieve, and how long each call takes.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lmcache_client::blocking::Client;
use lmcache_client::{ClientError, Options, Prompt, Registration};
use serde_json::{Value, json};

use super::objects;
use crate::cli::{Bench, Tier};
use crate::error::CtlError;
use crate::http::Daemon;
use crate::plot::{histogram, quantile};
use crate::show::{self, bytes, table};

/// How long a lookup may wait for L2.
const LOOKUP: Duration = Duration::from_secs(30);

/// Microseconds of each call, by its name.
type Samples = BTreeMap<&'static str, Vec<f64>>;

/// What one run has done.
#[derive(Default)]
struct Done {
    samples: Samples,
    stored: u64,
    retrieved: u64,
    /// Transfers that the daemon refused: a full pool, mostly.
    refused: u64,
}

pub(super) fn run(daemon: &Daemon, options: &Bench, json: bool) -> Result<(), CtlError> {
    // A model of its own, so that nothing of anybody else is touched, and its objects can be found again.
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let model = format!("lmcache-ctl-bench-{stamp:x}");
    let bar = ProgressBar::new(u64::from(options.workers) * u64::from(options.cycles));
    if json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = "{wide_bar} {pos}/{len} cycles, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let began = Instant::now();
    let results: Vec<Result<Done, ClientError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.workers)
            .map(|worker| {
                let (bar, model) = (&bar, model.as_str());
                scope.spawn(move || work(options, model, stamp, worker, bar))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ClientError::Closed))).collect()
    });
    let took = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let left_behind = clean(daemon, &model);
    let mut all = Done::default();
    for result in results {
        let done = result.map_err(|error| CtlError::Unreachable {
            url: options.endpoint.clone(),
            why: error.to_string(),
        })?;
        for (call, mut samples) in done.samples {
            all.samples.entry(call).or_default().append(&mut samples);
        }
        all.stored += done.stored;
        all.retrieved += done.retrieved;
        all.refused += done.refused;
    }
    for samples in all.samples.values_mut() {
        samples.sort_unstable_by(f64::total_cmp);
    }
    let document = document(options, &all, took, left_behind.as_ref().err().map(ToString::to_string));
    show::document(json, &document, |document| human(document, &all))
}

/// One worker's cycles: a prompt that nobody has stored is looked up, stored, looked up again and retrieved.
fn work(
    options: &Bench,
    model: &str,
    stamp: u64,
    worker: u32,
    bar: &ProgressBar,
) -> Result<Done, ClientError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let client = Client::connect(&options.endpoint, Options::default())?;
    let chunk = client.chunk_size()?;
    let instance = stamp ^ (u64::from(worker) << 48) ^ u64::from(std::process::id());
    let registration = Registration::new(instance, model).geometry(
        u64::from(options.layers),
        u64::from(options.width),
        "float16",
    );
    client.register(registration)?;
    let mut done = Done::default();
    let length = chunk * u64::from(options.chunks);
    let outcome = (0..options.cycles).try_for_each(|_| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Two tokens make the prompt its own; the chain makes all its chunks so.
        let mut tokens: Vec<u32> = (0..length as u32).map(|token| token % 30_000).collect();
        (tokens[0], tokens[1]) = ((number & 0xffff) as u32, (number >> 16) as u32);
        cycle(
            &client,
            &format!("bench-{stamp:x}-{number}"),
            &tokens,
            (length, u64::from(options.chunks)),
            &mut done,
        )?;
        bar.inc(1);
        Ok(())
    });
    let _ = client.unregister();
    outcome.map(|()| done)
}

fn timed<T>(samples: &mut Samples, call: &'static str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    samples.entry(call).or_default().push(began.elapsed().as_secs_f64() * 1e6);
    result
}

fn cycle(
    client: &Client,
    id: &str,
    tokens: &[u32],
    (length, chunks): (u64, u64),
    done: &mut Done,
) -> Result<(), ClientError> {
    let Done { samples, stored, retrieved, refused } = done;
    let cold = format!("{id}-cold");
    let prompt = Prompt::new(&cold, tokens);
    timed(samples, "lookup (miss)", || client.lookup(&prompt, LOOKUP))?;
    match timed(samples, "prepare store", || client.prepare_store(&prompt, 0..length)) {
        Ok(mut store) => {
            for (chunk, slot) in store.slots_mut() {
                timed(samples, "fill a slot", || slot.fill(chunk as u8));
                *stored += slot.len() as u64;
            }
            timed(samples, "commit store", || store.commit())?;
        }
        Err(ClientError::Refused(_)) => *refused += 1,
        Err(error) => return Err(error),
    }
    client.end_session(&cold)?;
    let warm = format!("{id}-warm");
    let prompt = Prompt::new(&warm, tokens);
    let hit = timed(samples, "lookup (hit)", || client.lookup(&prompt, LOOKUP))?.unwrap_or(0);
    if hit > 0 {
        let range = 0..hit * (length / chunks);
        match timed(samples, "prepare retrieve", || client.prepare_retrieve(&prompt, range)) {
            Ok(retrieve) => {
                let mut sum = 0u64;
                for slot in retrieve.slots() {
                    timed(samples, "read a slot", || {
                        sum = slot.chunks(64).fold(sum, |sum, line| sum.wrapping_add(u64::from(line[0])));
                    });
                    *retrieved += slot.len() as u64;
                }
                std::hint::black_box(sum);
                timed(samples, "commit retrieve", || retrieve.commit())?;
            }
            Err(ClientError::Refused(_)) => *refused += 1,
            Err(error) => return Err(error),
        }
    }
    client.end_session(&warm)
}

/// Takes what was stored out of L1 again.
fn clean(daemon: &Daemon, model: &str) -> Result<(), CtlError> {
    let tier = Tier { tier: "l1".into(), adapter: None };
    let found =
        objects::list(daemon, &objects::Wanted { tier: &tier, model: Some(model), hash: None }, usize::MAX)?;
    let keys: Vec<Value> = found.entries.into_iter().map(|mut entry| entry["key"].take()).collect();
    for part in keys.chunks(5000) {
        objects::remove(daemon, &tier, part, false)?;
    }
    Ok(())
}

fn document(options: &Bench, all: &Done, took: f64, left_behind: Option<String>) -> Value {
    let calls: serde_json::Map<String, Value> = all
        .samples
        .iter()
        .map(|(call, sorted)| {
            let micros = |q| (quantile(sorted, q) * 10.0).round() / 10.0;
            let row = json!({
                "count": sorted.len(),
                "p50_us": micros(0.5),
                "p90_us": micros(0.9),
                "p99_us": micros(0.99),
                "max_us": micros(1.0),
            });
            ((*call).to_owned(), row)
        })
        .collect();
    let cycles = u64::from(options.workers) * u64::from(options.cycles);
    json!({
        "workers": options.workers,
        "cycles": cycles,
        "seconds": took,
        "cycles_per_second": cycles as f64 / took.max(1e-9),
        "stored_bytes": all.stored,
        "retrieved_bytes": all.retrieved,
        "refused": all.refused,
        "calls": calls,
        "left_behind": left_behind,
    })
}

fn human(document: &Value, all: &Done) -> String {
    let number =
        |call: &str, key: &str| format!("{:.0}", document["calls"][call][key].as_f64().unwrap_or(0.0));
    let rows: Vec<Vec<String>> = all
        .samples
        .keys()
        .map(|call| {
            let mut row = vec![(*call).to_owned()];
            row.extend(["count", "p50_us", "p90_us", "p99_us", "max_us"].iter().map(|key| number(call, key)));
            row
        })
        .collect();
    let mut text = table(&["CALL", "COUNT", "P50 µs", "P90 µs", "P99 µs", "MAX µs"], &rows);
    for call in ["lookup (hit)", "prepare store"] {
        if let Some(sorted) = all.samples.get(call) {
            text.push_str(&format!("\n{call}\n{}", histogram(sorted)));
        }
    }
    text.push_str(&format!(
        "\n{} cycles in {:.1} s ({:.0} a second), {} stored, {} retrieved\n",
        document["cycles"],
        document["seconds"].as_f64().unwrap_or(0.0),
        document["cycles_per_second"].as_f64().unwrap_or(0.0),
        bytes(&document["stored_bytes"]),
        bytes(&document["retrieved_bytes"])
    ));
    if all.refused > 0 {
        text.push_str(&format!("{} transfers were refused; the daemon's log says why\n", all.refused));
    }
    if let Some(why) = document["left_behind"].as_str() {
        text.push_str(&format!("the objects of this run are still in L1: {why}\n"));
    }
    text
}
