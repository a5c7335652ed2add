//! A tier of files, as the daemon has it from its command line.

use std::path::Path;

use lmcache_proto::object_key::ObjectKey;

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

/// The objects of `model` in the tier in `dir`, as soon as there are `count` of them.
///
/// # Panics
/// If that does not happen in time; see [`eventually`].
pub async fn objects(dir: &Path, model: &str, count: usize) -> Vec<(ObjectKey, Vec<u8>)> {
    let of_model = || {
        let entries = std::fs::read_dir(dir).expect("the tier's directory").flatten();
        let keys = entries.filter_map(|entry| {
            let key = ObjectKey::from_fs_filename(&entry.file_name().to_string_lossy())?;
            (key.model_name == model).then(|| (key, entry.path()))
        });
        keys.collect::<Vec<_>>()
    };
    let found = eventually("the tier has the model's objects", async || {
        Some(of_model()).filter(|objects| objects.len() == count)
    });
    let read = |(key, path)| (key, std::fs::read(path).expect("an object"));
    found.await.into_iter().map(read).collect()
}
