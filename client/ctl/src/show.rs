//! Tables, sizes and times for people. Names come from the wire: whatever a client calls its model, it stays one line.

use std::io::Write;

use serde_json::Value;

use crate::error::CtlError;

/// Prints text. A reader that has gone, such as `head`, is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// Prints a document: as it is with `--json`, otherwise what `human` makes of it.
pub(crate) fn document(
    json: bool,
    document: &Value,
    human: impl FnOnce(&Value) -> String,
) -> Result<(), CtlError> {
    print(&if json { format!("{document:#}") } else { human(document) });
    Ok(())
}

/// A name without control characters, of a width that fits.
pub(crate) fn name(value: &Value) -> String {
    let text = match value {
        Value::Null => return "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let shown: String = text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect();
    if shown.is_empty() { "\"\"".into() } else { shown }
}

/// Bytes in a unit that fits.
pub(crate) fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_f64() else { return "-".into() };
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut number, mut unit) = (bytes, 0);
    while number >= 1024.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{number:.1} {}", UNITS[unit]) }
}

/// Seconds in a unit that fits.
pub(crate) fn seconds(value: &Value) -> String {
    let Some(seconds) = value.as_f64() else { return "-".into() };
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A part of a whole.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", part / whole * 100.0) } else { "-".into() }
}

/// Columns as wide as their widest cell; numbers to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return "none\n".into();
    }
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let is_number = |column: usize| {
        rows.iter().all(|row| {
            row.get(column).is_some_and(|cell| cell.starts_with(|c: char| c.is_ascii_digit()) || cell == "-")
        })
    };
    let right: Vec<bool> = (0..head.len()).map(is_number).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let pad = widths.get(column).map_or(0, |width| width.saturating_sub(cell.chars().count()));
            let pad = " ".repeat(pad);
            let gap = if column == 0 { "" } else { "  " };
            let (before, after) = if right.get(column).copied().unwrap_or(false) {
                (pad.as_str(), "")
            } else {
                ("", pad.as_str())
            };
            line.push_str(&format!("{gap}{before}{cell}{after}"));
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `name: value` lines with the values in one column.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// The rows of a list in a document.
pub(crate) fn rows(list: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    list.as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn units_and_columns() {
        assert_eq!(bytes(&json!(1536)), "1.5 KiB");
        assert_eq!(bytes(&json!(7)), "7 B");
        assert_eq!(bytes(&Value::Null), "-");
        assert_eq!(seconds(&json!(0.25)), "250 ms");
        assert_eq!(seconds(&json!(7300)), "2.0 h");
        assert_eq!(percent(1.0, 0.0), "-");
        let rows = vec![vec!["a".into(), "10".into()], vec!["long".into(), "9".into()]];
        assert_eq!(table(&["name", "n"], &rows), "name   n\na     10\nlong   9\n");
        assert_eq!(name(&json!("a\nb\u{1b}[31m")), "a?b?[31m");
    }
}
