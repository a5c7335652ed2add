//! `top`: the daemon's numbers as they change.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Sparkline, Table};
use serde_json::Value;

use super::sample::Sample;
use crate::cli::Top;
use crate::error::CtlError;
use crate::http::Daemon;
use crate::show::{self, bytes, name, seconds};

/// Looks kept for the curves.
const KEPT: usize = 240;

/// What is drawn.
#[derive(Default)]
struct View {
    url: String,
    now: Value,
    /// Tokens per second that were served from the cache, newest last.
    served: VecDeque<u64>,
    trouble: Option<String>,
}

pub(super) fn run(daemon: &Daemon, options: &Top, json: bool) -> Result<(), CtlError> {
    if !(0.1..=3600.0).contains(&options.interval) {
        return Err(CtlError::Usage("--interval must be 0.1 to 3600 seconds".into()));
    }
    let interval = Duration::from_secs_f64(options.interval);
    let first = Sample::take(daemon)?;
    if json || !std::io::stdout().is_terminal() {
        return plain(daemon, first, interval, options.count.unwrap_or(1), json);
    }
    let mut terminal = ratatui::try_init()?;
    let mut view = View { url: daemon.url().to_owned(), ..View::default() };
    let outcome = (|| {
        let (mut before, mut left) = (first, options.count.unwrap_or(u64::MAX));
        while left > 0 {
            if quits_within(interval)? {
                return Ok(());
            }
            match Sample::take(daemon) {
                Ok(sample) => {
                    view.push(sample.document(&before));
                    before = sample;
                }
                // It may come back: a restart takes seconds.
                Err(error) => view.trouble = Some(error.to_string()),
            }
            terminal.draw(|frame| view.draw(frame))?;
            left -= 1;
        }
        Ok(())
    })();
    ratatui::restore();
    outcome
}

/// Without a terminal: a document for each look.
fn plain(daemon: &Daemon, first: Sample, interval: Duration, count: u64, json: bool) -> Result<(), CtlError> {
    let mut before = first;
    for _ in 0..count {
        std::thread::sleep(interval);
        let sample = Sample::take(daemon)?;
        show::document(json, &sample.document(&before), lines)?;
        before = sample;
    }
    Ok(())
}

/// Waits for a key that ends the view, at most `limit`.
fn quits_within(limit: Duration) -> Result<bool, CtlError> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()? {
            let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

fn part(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |part| show::percent(part, 1.0))
}

fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |rate| format!("{rate:.0}/s"))
}

fn speed(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |speed| format!("{speed:.2} GB/s"))
}

/// The numbers in lines.
fn lines(now: &Value) -> String {
    let dropped = &now["dropped"];
    show::pairs(&[
        (
            "hit rate",
            format!("{} now, {} since the start", part(&now["hit_rate"]), part(&now["hit_rate_since_start"])),
        ),
        ("requests", rate(&now["requests_per_second"])),
        (
            "tokens",
            format!(
                "{} stored, {} retrieved",
                rate(&now["stored_tokens_per_second"]),
                rate(&now["retrieved_tokens_per_second"])
            ),
        ),
        (
            "L1",
            format!(
                "{} of {}, {} objects",
                bytes(&now["l1_used_bytes"]),
                bytes(&now["l1_capacity_bytes"]),
                now["objects"]
            ),
        ),
        ("holds", format!("{} leases, {} pins, {} sessions", now["leases"], now["pins"], now["sessions"])),
        (
            "queues",
            format!(
                "events {} ({}), wire {}, L2 stores {}, L2 loads {}",
                now["event_bus_depth"],
                seconds(&now["event_bus_lag_seconds"]),
                bytes(&now["wire_queued_bytes"]),
                name(&now["l2_waiting_store_objects"]),
                name(&now["l2_prefetch_jobs"])
            ),
        ),
        (
            "dropped",
            format!(
                "events {}, ring records {}, log lines {}, event streams {}",
                dropped["events"], dropped["ring_records"], dropped["log_lines"], dropped["event_streams"]
            ),
        ),
    ])
}

impl View {
    fn push(&mut self, now: Value) {
        self.served.push_back(now["retrieved_tokens_per_second"].as_f64().unwrap_or(0.0) as u64);
        if self.served.len() > KEPT {
            self.served.pop_front();
        }
        (self.now, self.trouble) = (now, None);
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let areas: [Rect; 5] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(3),
            Constraint::Length(9),
            Constraint::Length(7),
            Constraint::Min(3),
        ])
        .areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let title = match &self.trouble {
            Some(trouble) => format!("{trouble} (q ends)"),
            None => format!("lmcached at {} (q ends)", self.url),
        };
        frame.render_widget(Line::styled(title, bold), areas[0]);
        let number = |key: &str| self.now[key].as_f64().unwrap_or(0.0);
        let (used, capacity) = (number("l1_used_bytes"), number("l1_capacity_bytes"));
        let ratio = if capacity > 0.0 { (used / capacity).clamp(0.0, 1.0) } else { 0.0 };
        let l1 = Gauge::default().block(Block::bordered().title("L1")).ratio(ratio).label(format!(
            "{} of {}",
            bytes(&self.now["l1_used_bytes"]),
            bytes(&self.now["l1_capacity_bytes"])
        ));
        frame.render_widget(l1, areas[1]);
        let text = Paragraph::new(lines(&self.now)).block(Block::bordered().title("now"));
        frame.render_widget(text, areas[2]);
        let width = usize::from(areas[3].width.saturating_sub(2));
        let served: Vec<u64> = self.served.iter().rev().take(width).rev().copied().collect();
        let curve =
            Sparkline::default().block(Block::bordered().title("tokens retrieved per second")).data(&served);
        frame.render_widget(curve, areas[3]);
        let rows = show::rows(&self.now["workers"], |worker| {
            vec![
                name(&worker["instance"]),
                name(&worker["model"]),
                speed(&worker["store_gb_per_second"]),
                speed(&worker["load_gb_per_second"]),
                name(&worker["transfers"]),
                seconds(&worker["silent_seconds"]),
            ]
        });
        let widths = [20, 32, 12, 12, 10, 10].map(Constraint::Length);
        let table = Table::new(rows.into_iter().map(Row::new), widths)
            .header(Row::new(["worker", "model", "store", "load", "transfers", "silent"]).style(bold))
            .block(Block::bordered().title("workers"));
        frame.render_widget(table, areas[4]);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_view_shows_the_numbers_and_survives_a_tiny_terminal() {
        let mut view = View { url: "http://here".into(), ..View::default() };
        view.push(json!({
            "hit_rate": 0.25, "l1_used_bytes": 512, "l1_capacity_bytes": 1024, "retrieved_tokens_per_second": 7.0,
            "workers": [{"instance": 42, "model": "m", "store_gb_per_second": 1.5}],
        }));
        let drawn = |width, height| {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
            terminal.draw(|frame| view.draw(frame)).expect("drawn");
            terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect::<String>()
        };
        let screen = drawn(120, 40);
        for text in ["http://here", "25.0 % now", "512 B of 1.0 KiB", "42", "1.50 GB/s"] {
            assert!(screen.contains(text), "{text} in {screen}");
        }
        drawn(10, 3);
    }
}
