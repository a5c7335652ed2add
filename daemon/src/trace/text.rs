//! Text out of files that may hold anything, for a terminal.

/// Longest name shown.
const SHOWN: usize = 120;

/// One line without control characters, cut if it is long.
pub(super) fn plain(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= SHOWN {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A field of a CSV line.
pub(super) fn csv(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// `label: value`, with the values in one column.
pub(super) fn line(label: &str, value: impl std::fmt::Display) -> String {
    format!("  {:<24}{value}\n", format!("{label}:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_that_moves_it() {
        assert_eq!(plain("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert!(plain(&"x".repeat(100_000)).len() < 200);
        assert_eq!(csv("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(csv("plain"), "plain");
    }
}
