//! The documentation says what the daemon does: flags, error lines, links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use ipc_tests::daemon::{binary, ctl};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            files(&entry, extension, found);
        } else if entry.extension().is_some_and(|other| other == extension) {
            found.push(entry);
        }
    }
}

#[test]
fn the_guide_lists_the_flags_of_the_daemon() {
    const BEGIN: &str = "<!-- flags:begin -->\n";
    const END: &str = "<!-- flags:end -->";
    let output = Command::new(binary()).arg("--help").env_remove("COLUMNS").output().expect("runs");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let wanted = format!("```text\n{}\n```\n", lines.join("\n").trim_end());
    let path = root().join("docs/src/configuration.md");
    let text = read(&path);
    let (head, rest) = text.split_once(BEGIN).expect("the beginning of the list");
    let (now, tail) = rest.split_once(END).expect("the end of the list");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{wanted}{END}{tail}")).expect("written");
        return;
    }
    assert!(
        now == wanted,
        "docs/src/configuration.md is out of date: UPDATE_DOCS=1 cargo test --workspace --test docs"
    );
}

/// The package installs these; they are made once and not by every build.
#[test]
fn the_manual_and_the_completions_are_those_of_the_program() {
    let share = root().join("client/ctl/share");
    for (file, args) in [
        ("lmcache-ctl.1", &["man"][..]),
        ("lmcache-ctl.bash", &["completions", "bash"]),
        ("_lmcache-ctl", &["completions", "zsh"]),
        ("lmcache-ctl.fish", &["completions", "fish"]),
    ] {
        let output = Command::new(ctl()).args(args).output().expect("runs");
        let wanted = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success() && wanted.len() > 1000, "{args:?}: {wanted}");
        let path = share.join(file);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(&share).expect("a folder");
            std::fs::write(&path, &wanted).expect("written");
        }
        assert!(
            read(&path) == wanted,
            "{} is out of date: UPDATE_DOCS=1 cargo test --workspace --test docs",
            path.display()
        );
    }
}

/// Texts of `#[error("…")]`.
fn error_texts(source: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for attribute in source.split("#[error(").skip(1) {
        let Some(literal) = attribute.trim_start().strip_prefix('"') else { continue };
        let mut text = String::new();
        let mut chars = literal.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' if chars.peek() == Some(&'\n') => {
                    while chars.next_if(|c| c.is_whitespace()).is_some() {}
                }
                '\\' => text.extend(chars.next()),
                c => text.push(c),
            }
        }
        texts.push(text);
    }
    texts
}

/// The longest part of a text that is the same each time, without the advice after a semicolon.
fn fixed_part(text: &str) -> String {
    let head = text.split(';').next().unwrap_or_default();
    let mut parts = Vec::new();
    let mut rest = head;
    while let Some((part, after)) = rest.split_once('{') {
        parts.push(part);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    parts.push(rest);
    parts
        .into_iter()
        .map(|part| part.trim_matches([' ', '(', ')', ':', ',']))
        .max_by_key(|part| part.len())
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn every_error_line_of_the_start_is_in_troubleshooting() {
    let guide = read(&root().join("docs/src/troubleshooting.md"));
    let mut count = 0;
    for file in [
        "app/mod.rs",
        "handover/heir.rs",
        "http/guard.rs",
        "systemd.rs",
        "config/error.rs",
        "server/endpoint.rs",
        "l1/open.rs",
        "l1/pool/reserve.rs",
        "l1/pool/segment.rs",
        "ring/hub.rs",
        "tenants.rs",
        "telemetry/otlp/collector.rs",
        "trace/recorder.rs",
    ] {
        for text in error_texts(&read(&root().join("daemon/src").join(file))) {
            let fixed = fixed_part(&text);
            // What is all placeholders says itself what to do.
            if fixed.len() < 8 {
                continue;
            }
            count += 1;
            assert!(guide.contains(&fixed), "{file}: docs/src/troubleshooting.md has no line for {fixed:?}");
        }
    }
    assert!(count > 12, "only {count} texts were found: the sources are not read as they should be");
}

#[test]
fn refusals_are_explained() {
    let guide = read(&root().join("docs/src/troubleshooting.md"));
    let source = read(&root().join("daemon/src/engine/refusal.rs"));
    let names = source.split("fn name(self)").nth(1).and_then(|rest| rest.split("fn advice").next());
    let names: Vec<&str> = names.expect("the names").split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(guide.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// Headings as GitHub and mdBook make anchors of them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text)
        .filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_owned()));
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Lines that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence && !line.starts_with("    ")
    })
}

/// A number as the guide writes it.
fn number(text: &str) -> Option<u64> {
    let mut words = text.split(' ');
    let number: u64 = words.next()?.replace(',', "").parse().ok()?;
    let shift = match words.next() {
        None => 0,
        Some("KiB") => 10,
        Some("MiB") => 20,
        Some("GiB") => 30,
        Some(_) => return None,
    };
    Some(number << shift)
}

/// Every limit against those outside has a row in the guide, with the default that it has and a metric that exists.
#[test]
fn every_limit_is_in_the_table_of_bounds() {
    let security = read(&root().join("docs/src/security.md"));
    let (_, table) = security.split_once("### Bounds").expect("the table");
    let (table, _) = table.split_once("\n### ").expect("its end");
    let rows: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| ") && line.contains("`--")).collect();
    let instrumentation = read(&root().join("docs/INSTRUMENTATION.md"));
    let output = Command::new(binary()).arg("--help").env_remove("COLUMNS").output().expect("runs");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    // Each flag, with its text up to the next one.
    let heads: Vec<usize> = help.match_indices("\n      --").map(|(at, _)| at + 7).collect();
    let ends = heads.iter().skip(1).copied().chain([help.len()]);
    let flags: BTreeMap<&str, &str> =
        heads.iter().zip(ends).filter_map(|(from, to)| help[*from..to].split_once([' ', '\n'])).collect();
    let mut in_the_table = BTreeSet::new();
    for row in &rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, flag, default, answer, metrics] = cells[..] else { panic!("{row}") };
        let flag = flag.trim_matches('`');
        let text = flags.get(flag).unwrap_or_else(|| panic!("{flag} is no flag"));
        let told = if default == "no limit" { Some(0) } else { number(default) };
        let (_, real) = text.split_once("[default: ").unwrap_or_else(|| panic!("{flag} has no default"));
        let (real, _) = real.split_once(']').expect("its end");
        assert_eq!(told.map(|told| told.to_string()).as_deref(), Some(real), "{flag}: {default}");
        assert!(!answer.is_empty(), "{flag}");
        let metric = metrics.trim_start_matches('`').split(['`', '{']).next().unwrap_or_default();
        assert!(metric.starts_with("lmcache"), "{row}");
        assert!(instrumentation.contains(&format!("`{metric}`")), "{metric} is no metric");
        in_the_table.insert(flag);
    }
    // Threads of the peer's: accepted, and without effect here.
    let threads = ["--max-workers", "--max-cpu-workers", "--max-gpu-workers"];
    let limits = flags.keys().filter(|flag| flag.starts_with("--max-") || flag.starts_with("--http-max-"));
    let missing: Vec<_> =
        limits.filter(|flag| !in_the_table.contains(**flag) && !threads.contains(*flag)).collect();
    assert!(missing.is_empty(), "{missing:?} have no row");
    assert!(in_the_table.len() > 15, "{in_the_table:?}");
}

/// Each row of the reports names tests that exist: `file::name`, as much of the file's path as tells it.
#[test]
fn every_report_has_its_test() {
    let page = read(&root().join("docs/TESTING.md"));
    let (_, section) = page.split_once("## What users have reported\n").expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let mut sources = Vec::new();
    for dir in ["ipc-tests/tests", "daemon/src", "proto/src", "client/src"] {
        files(&root().join(dir), "rs", &mut sources);
    }
    let exists = |file: &str, name: &str| {
        let ends = [format!("/{file}.rs"), format!("/{file}/mod.rs")];
        let of_file =
            sources.iter().filter(|path| ends.iter().any(|end| path.to_string_lossy().ends_with(end)));
        of_file.into_iter().any(|path| read(path).contains(&format!("fn {name}()")))
    };
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    for row in &rows {
        let tests: Vec<_> = row.split('`').filter_map(|code| code.split_once("::")).collect();
        assert!(!tests.is_empty(), "{row} has no test");
        for (file, name) in tests {
            assert!(exists(file, name), "{file}::{name} is no test: {row}");
        }
    }
    assert!(rows.len() > 40, "{} rows", rows.len());
}

#[test]
fn links_lead_somewhere() {
    let root = root();
    let mut pages = vec![root.join("README.md")];
    for dir in ["docs", "deploy", "ipc-tests"] {
        files(&root.join(dir), "md", &mut pages);
    }
    let mut count = 0;
    for page in pages {
        let text = read(&page);
        for line in prose(&text) {
            for after in line.split("](").skip(1) {
                let Some((target, _)) = after.split_once(')') else { continue };
                if target.contains("://") {
                    continue;
                }
                count += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let file =
                    if path.is_empty() { page.clone() } else { page.parent().expect("a folder").join(path) };
                assert!(file.exists(), "{}: {target} leads nowhere", page.display());
                if !anchor.is_empty() {
                    assert!(
                        anchors(&read(&file)).contains(anchor),
                        "{}: {target} has no such heading",
                        page.display()
                    );
                }
            }
        }
    }
    assert!(count > 20, "only {count} links were found: the pages are not read as they should be");
}

#[test]
fn the_table_of_the_readme_is_the_one_of_the_benchmarks() {
    let benchmarks = read(&root().join("docs/benchmarks.md"));
    let readme = read(&root().join("README.md"));
    let (_, table) = readme.split_once("<!-- table:begin -->").expect("the table begins");
    let (table, _) = table.split_once("<!-- table:end -->").expect("the table ends");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 4);
    for row in rows {
        assert!(benchmarks.contains(row), "README.md has a row that docs/benchmarks.md does not have: {row}");
    }
}
