//! A tier of files, as the daemon has it from its command line.

use std::path::Path;

use crate::eventually;

/// The flag that gives the daemon a tier in `dir`.
pub fn flag(dir: &Path) -> String {
    format!(r#"--l2-adapter={{"type":"fs","base_path":"{}"}}"#, dir.display())
}

/// Waits until the tier in `dir` has `files` objects.
///
/// # Panics
/// If that does not happen in time; see [`eventually`].
pub async fn stored(dir: &Path, files: usize) {
    let count = || {
        let names = std::fs::read_dir(dir).expect("the tier's directory");
        names.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".data")).count()
    };
    eventually("the tier has them", async || (count() == files).then_some(())).await;
}
