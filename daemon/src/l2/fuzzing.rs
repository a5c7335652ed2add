//! What stores return, whoever wrote it: values, side-cars, names, an index on a device.

use std::sync::Arc;

use lmcache_proto::fuzzing::Input;
use lmcache_proto::object_key::ObjectKey;

use super::checksum::Checksum;
use super::settings::Settings;
use super::{aesgcm, fs, raw_block, registry};
use crate::config;

pub(super) fn key(salt: u8) -> ObjectKey {
    ObjectKey {
        chunk_hash: [salt; 32],
        model_name: "org/model".into(),
        kv_rank: 0x0100_0100,
        object_group_id: 0,
        cache_salt: if salt & 1 == 0 { String::new() } else { format!("tenant-{salt}") },
    }
}

/// The first byte says which store's.
pub fn l2_values(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 6 {
        0 => aesgcm::fuzzing::value(&mut input),
        1 => raw_block::fuzzing::device(&mut input),
        #[cfg(feature = "l2-redis")]
        2 => super::redis::fuzz_reply(&mut input),
        3 => {
            let text = input.rest();
            if let Some(sum) = Checksum::parse(text) {
                // Upper-case digits are the same number.
                assert_eq!(sum.to_string().as_bytes(), text.to_ascii_lowercase());
            }
            fs::fuzz_crc_line(text);
        }
        4 => adapter(input.rest()),
        _ => names(input.rest()),
    }
}

/// An adapter's configuration, as the command line or the admin API gives it. Nothing is opened.
fn adapter(json: &[u8]) {
    if let Ok(serde_json::Value::Object(values)) = serde_json::from_slice(json) {
        let mut settings = Settings::new(values);
        for key in ["type", "base_path", "device_path"] {
            let _ = settings.text(key);
            let _ = settings.count(key, 1..=10);
            let _ = settings.seconds(key);
            let _ = settings.numbers(key);
        }
        let _ = settings.left();
    }
    // A key file is read when the plan is made, and read only.
    if let Ok(adapter) = config::l2_adapter(json) {
        let _ = registry::plan(1, &adapter);
    }
}

/// A listing's names: keys that no request can have do not come out of it.
fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for key in [ObjectKey::from_native_key(text), ObjectKey::from_fs_filename(text)].into_iter().flatten() {
        assert!(key.is_valid());
        let sum = Checksum::of_bytes(&key, data);
        let shared: Arc<[u8]> = data.into();
        assert_eq!(sum, Checksum::of_bytes(&key, &shared));
    }
}
