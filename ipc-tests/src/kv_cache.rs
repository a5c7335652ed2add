//! A worker's KV cache in CPU shared memory, as an engine that lets the daemon copy has it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use lmcache_proto::wire::{DeviceDescriptor, EngineGroupInfo, LayoutHints, RegisterKvCache, TensorMetadata};

use crate::worker::Model;

/// Shape of every layer: `[2, blocks, block, heads, head]` float16.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Blocks of a layer.
    pub blocks: u64,
    /// Tokens of a block.
    pub block: u64,
    /// Heads.
    pub heads: u64,
    /// Elements of a head.
    pub head: u64,
}

impl Shape {
    /// A small one: 64 blocks, which are four chunks.
    pub const SMALL: Shape = Shape { layers: 2, blocks: 64, block: 16, heads: 2, head: 32 };

    /// The model `name` with this cache, on one rank.
    pub fn model(&self, name: &str) -> Model {
        Model { name: name.into(), world_size: 1, layers: self.layers as u64, width: self.heads * self.head }
    }

    /// Bytes of a layer.
    pub fn layer_bytes(&self) -> u64 {
        2 * self.blocks * self.block_bytes()
    }

    /// Bytes of one block of one plane of one layer.
    pub fn block_bytes(&self) -> u64 {
        self.block * self.heads * self.head * 2
    }
}

/// One segment per layer; those that it has made are removed when it is dropped.
#[derive(Debug)]
pub struct KvCache {
    shape: Shape,
    names: Vec<String>,
    files: Vec<File>,
}

impl KvCache {
    /// Segments of zeros; `tag` tells caches of one process apart.
    ///
    /// # Panics
    /// Without shared memory.
    pub fn new(tag: &str, shape: Shape) -> KvCache {
        KvCache::named(&format!("test{}_{tag}", std::process::id()), shape)
    }

    /// The same under a name that other processes know; those that are there already are left alone.
    ///
    /// # Panics
    /// Without shared memory.
    pub fn named(name: &str, shape: Shape) -> KvCache {
        let names: Vec<String> =
            (0..shape.layers).map(|layer| format!("/lmcache_kv_{name}_{layer}")).collect();
        let make = |name: &String| {
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).open(format!("/dev/shm{name}")) {
                Ok(file) => {
                    file.set_len(shape.layer_bytes()).expect("size");
                    Some(file)
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                Err(error) => panic!("{name}: {error}"),
            }
        };
        let files = names.iter().filter_map(make).collect();
        KvCache { shape, names, files }
    }

    /// A layer's segment.
    pub fn file(&self, layer: usize) -> &File {
        &self.files[layer]
    }

    /// A layer's segment name.
    pub fn name(&self, layer: usize) -> &str {
        &self.names[layer]
    }

    /// A descriptor of a layer of this shape in any segment.
    pub fn descriptor(&self, name: &str, nbytes: u64) -> DeviceDescriptor {
        let Shape { blocks, block, heads, head, .. } = self.shape;
        let metadata = TensorMetadata {
            dtype: "float16".into(),
            shape: vec![2, blocks, block, heads, head],
            stride: vec![blocks * block * heads * head, block * heads * head, heads * head, head, 1],
            storage_offset: 0,
            device_uuid: "cpu".into(),
        };
        DeviceDescriptor::CpuShm { shm_name: name.into(), nbytes, version: 1, metadata }
    }

    /// The registration of worker `instance`.
    pub fn registration(&self, instance: u64, model: &str) -> RegisterKvCache {
        let bytes = self.shape.layer_bytes();
        RegisterKvCache {
            instance_id: instance,
            kv_cache: self.names.iter().map(|name| self.descriptor(name, bytes)).collect(),
            model_name: model.into(),
            world_size: 1,
            engine_type: "vllm".into(),
            layout_hints: LayoutHints { kv_layout: Some("NHD".into()), ..LayoutHints::default() },
            engine_group_infos: vec![EngineGroupInfo {
                engine_group_id: 0,
                layer_indices: (0..self.shape.layers as u32).collect(),
                tokens_per_block: self.shape.block,
                sw_size_tokens: -1,
                extra_object_group_tag: 0,
                recurrent_state: false,
            }],
        }
    }

    /// Writes every byte as a function of its place.
    ///
    /// # Panics
    /// If the memory is not there.
    pub fn fill(&self) {
        for (layer, file) in self.files.iter().enumerate() {
            let bytes: Vec<u8> =
                (0..self.shape.layer_bytes()).map(|i| (i * 7 + (i >> 9) + layer as u64 * 13) as u8).collect();
            file.write_all_at(&bytes, 0).expect("fill");
        }
    }

    /// Zeroes everything.
    ///
    /// # Panics
    /// If the memory is not there.
    pub fn wipe(&self) {
        for file in &self.files {
            file.write_all_at(&vec![0; self.shape.layer_bytes() as usize], 0).expect("wipe");
        }
    }

    /// Bytes of one block, both planes of all layers, layer-major.
    ///
    /// # Panics
    /// If the block does not exist.
    pub fn block(&self, block: u64) -> Vec<u8> {
        let len = self.shape.block_bytes();
        let mut all = Vec::new();
        for file in &self.files {
            for plane in 0..2 {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, (plane * self.shape.blocks + block) * len).expect("block");
                all.extend(bytes);
            }
        }
        all
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        // Where there is no file of ours, the names are somebody else's.
        for (name, _) in self.names.iter().zip(&self.files) {
            let _ = std::fs::remove_file(format!("/dev/shm{name}"));
        }
    }
}
