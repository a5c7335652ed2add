//! What LMCache 0.5.6 itself computes for a set of registrations: kernel groups, object groups, MD5 of the stored objects
//! (room behind a window zeroed), MD5 of the worker's segment after a retrieve into zeros, null masks, block checksums.
//! Made by running its `KVLayerGroupsManager`, `multi_layer_block_kv_transfer` and `_compute_block_checksums`.
//! The segment's byte `i` is `pattern(i)`, byte `i` of a retrieved object of chunk `c` is `pattern(1000 + c + i)`.
#![forbid(unsafe_code)]

/// `(dtype, shape, stride, storage offset)`.
pub(super) type Tensor = (&'static str, &'static [u64], &'static [u64], u64);
/// `(engine group, layers, tokens per block, window, tag, recurrent)`.
pub(super) type Info = (u32, &'static [u32], u64, i64, i64, bool);
/// `(format, layers, tokens per block, slots per block, slots kept)`.
pub(super) type Kernel = (&'static str, &'static [usize], u64, u64, u64);

pub(super) struct Object {
    pub(super) kernel_groups: &'static [usize],
    pub(super) window: i64,
    pub(super) kind: &'static str,
    pub(super) bytes: u64,
    pub(super) stored: &'static [&'static str],
    pub(super) retrieved: &'static str,
    pub(super) null: &'static [bool],
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) tensors: &'static [Tensor],
    pub(super) hint: Option<&'static str>,
    pub(super) infos: &'static [Info],
    pub(super) chunk: u64,
    pub(super) separate: bool,
    pub(super) ids: &'static [&'static [u64]],
    pub(super) skip: u64,
    pub(super) nbytes: u64,
    pub(super) kernel: &'static [Kernel],
    pub(super) objects: &'static [Object],
    /// Of blocks 3, 1, 1, 0, 2 in chunks of 2.
    pub(super) aggregated: Option<&'static [&'static str]>,
    pub(super) layerwise: &'static [&'static [&'static str]],
}

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case {
        name: "kv first nhd", hint: Some("NHD"), chunk: 16, separate: false, skip: 9, nbytes: 5376,
        tensors: &[
            ("float16", &[2, 7, 4, 3, 8], &[672, 96, 24, 8, 1], 0),
            ("float16", &[2, 7, 4, 3, 8], &[672, 96, 24, 8, 1], 1344),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_TWO_NB_BS_NH_HS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 3072, null: &[false, false],
                stored: &["fd6f6e3592fbc5004488d323269c9078", "9ba11decba7fd9f63198aa1cf6c0019b"],
                retrieved: "3012f9215f994378d08671034f3dbd06" },
        ],
        aggregated: Some(&["ace7c5e5c9b3332ba8cc08c93d56d29d", "e3745c3e461a8e278f01f0909d1cbaae", "eb7844eded2071d2088102717f8289cc"]),
        layerwise: &[
            &["f552c873a2983bd30823ad3e3a9c590e", "7459608bf31f5eb93a47a8bbbd09ae96", "6f0baf69a46ede46e98cb1a0ee2a51af"],
            &["b3477f44eff54b522f2bf8e7baa69889", "9f2411fa1c929473ff10b6651a50daff", "020d2ade7746f6ce2866e91a78a3ea98"],
        ],
    },
    Case {
        name: "kv first hnd permuted", hint: Some("HND"), chunk: 16, separate: false, skip: 4, nbytes: 5376,
        tensors: &[
            ("float16", &[2, 7, 4, 3, 8], &[672, 96, 8, 32, 1], 0),
            ("float16", &[2, 7, 4, 3, 8], &[672, 96, 8, 32, 1], 1344),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_TWO_NB_NH_BS_HS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 3072, null: &[false, false],
                stored: &["92000a3a445a0969d5a2d47af3e63558", "fd40bca5cfb63299e538d02c0412b197"],
                retrieved: "e5fa6ca11ce537f3c23b8742d8f150f4" },
        ],
        aggregated: Some(&["ace7c5e5c9b3332ba8cc08c93d56d29d", "e3745c3e461a8e278f01f0909d1cbaae", "eb7844eded2071d2088102717f8289cc"]),
        layerwise: &[
            &["f552c873a2983bd30823ad3e3a9c590e", "7459608bf31f5eb93a47a8bbbd09ae96", "6f0baf69a46ede46e98cb1a0ee2a51af"],
            &["b3477f44eff54b522f2bf8e7baa69889", "9f2411fa1c929473ff10b6651a50daff", "020d2ade7746f6ce2866e91a78a3ea98"],
        ],
    },
    Case {
        name: "blocks first nhd", hint: Some("NHD"), chunk: 16, separate: false, skip: 17, nbytes: 8064,
        tensors: &[
            ("bfloat16", &[7, 2, 4, 3, 8], &[192, 96, 24, 8, 1], 0),
            ("bfloat16", &[7, 2, 4, 3, 8], &[192, 96, 24, 8, 1], 1344),
            ("bfloat16", &[7, 2, 4, 3, 8], &[192, 96, 24, 8, 1], 2688),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_TWO_BS_NH_HS", &[0, 1, 2], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 4608, null: &[false, false],
                stored: &["05a9646835dda262c778dce1e15f7a72", "1eba41480519f16ab4e8bc910b4b7290"],
                retrieved: "ebe11b44f417842df20333d5e70fc06a" },
        ],
        aggregated: Some(&["d48b35af1c37815ebbf02e2f749acad7", "98e8608ecfc13fc4f64e2ba8b70bd320", "05ac0cc11f34302c6966f2a67b10ed89"]),
        layerwise: &[
            &["5ad1f4a91f9bd1294dd6ebe07f7bafae", "83006791ae9de0b31a201c5e608bddfd", "6593ff1f681f7c9dd387f234b5ed9359"],
            &["050d0b893bdeb58f68a229d78e0668cc", "621dbffad9c44de330792b5cb8d818bb", "5a188dc67e4826feb182a11826663f4e"],
            &["42756892131c2dd3da4226f4b955b852", "1a93778e129206124ff784940284a626", "dc38ccbb41db0656b8e260e708b7251d"],
        ],
    },
    Case {
        name: "blocks first hnd permuted", hint: Some("HND"), chunk: 16, separate: false, skip: 0, nbytes: 2688,
        tensors: &[
            ("bfloat16", &[7, 2, 4, 3, 8], &[192, 96, 8, 32, 1], 0),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_TWO_NH_BS_HS", &[0], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 1536, null: &[false, false],
                stored: &["c7eba968e3cef8bf8a6b82253da8610d", "ef12efae2e84c82623dd4431cddd1801"],
                retrieved: "3457f6de2ffaa33c4e6ee75d5ca7cbb1" },
        ],
        aggregated: Some(&["5ad1f4a91f9bd1294dd6ebe07f7bafae", "83006791ae9de0b31a201c5e608bddfd", "6593ff1f681f7c9dd387f234b5ed9359"]),
        layerwise: &[
            &["5ad1f4a91f9bd1294dd6ebe07f7bafae", "83006791ae9de0b31a201c5e608bddfd", "6593ff1f681f7c9dd387f234b5ed9359"],
        ],
    },
    Case {
        name: "fused nhd", hint: Some("NHD"), chunk: 16, separate: false, skip: 20, nbytes: 10752,
        tensors: &[
            ("float32", &[7, 4, 3, 16], &[192, 48, 16, 1], 0),
            ("float32", &[7, 4, 3, 16], &[192, 48, 16, 1], 1344),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_BS_NH_CS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 6144, null: &[false, false],
                stored: &["84429c7d40099bda7e002150458ef5b8", "b8a95699c9343263d3e365e5da3ccb08"],
                retrieved: "9cc377d1f6a1d405b46a7200c33efed6" },
        ],
        aggregated: Some(&["9f26003f882478ef3c82d3971d04e017", "2fd3c2937020320415224a7c3fb72d29", "1cd69d448c2c2ba0c10e96eb8baebeae"]),
        layerwise: &[
            &["a3f2c0cf59af580f78430414d41bb2c9", "f7eac17229c4a685cbd0ecde72b6fbb8", "bcc14e318a1f9a8e7da9f42c5e3df759"],
            &["7ecd0c6d32b1eb73ca7c8701f7af758f", "bcce7b51643f417af15cde4be27cfe25", "3aaeb7517e9fb6c1ac20e8eaa1383a13"],
        ],
    },
    Case {
        name: "fused hnd permuted, no hint", hint: None, chunk: 16, separate: false, skip: 3, nbytes: 10752,
        tensors: &[
            ("float32", &[7, 4, 3, 16], &[192, 16, 64, 1], 0),
            ("float32", &[7, 4, 3, 16], &[192, 16, 64, 1], 1344),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_NH_BS_CS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 6144, null: &[false, false],
                stored: &["d4cddb508b1e36fe9e7fb1248491c993", "243a04ea6088c52a6d9092735b506ef7"],
                retrieved: "54450c81944b7abcba89335a6b4b347c" },
        ],
        aggregated: Some(&["9f26003f882478ef3c82d3971d04e017", "2fd3c2937020320415224a7c3fb72d29", "1cd69d448c2c2ba0c10e96eb8baebeae"]),
        layerwise: &[
            &["a3f2c0cf59af580f78430414d41bb2c9", "f7eac17229c4a685cbd0ecde72b6fbb8", "bcc14e318a1f9a8e7da9f42c5e3df759"],
            &["7ecd0c6d32b1eb73ca7c8701f7af758f", "bcce7b51643f417af15cde4be27cfe25", "3aaeb7517e9fb6c1ac20e8eaa1383a13"],
        ],
    },
    Case {
        name: "fused nhd, layers packed in blocks", hint: Some("BLNHC"), chunk: 16, separate: false, skip: 8, nbytes: 8064,
        tensors: &[
            ("float16", &[7, 4, 3, 16], &[576, 48, 16, 1], 0),
            ("float16", &[7, 4, 3, 16], &[576, 48, 16, 1], 192),
            ("float16", &[7, 4, 3, 16], &[576, 48, 16, 1], 384),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_BS_NH_CS", &[0, 1, 2], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 4608, null: &[false, false],
                stored: &["0fda900882eedcd75b249b0826fc47a1", "c4af9637d56cf81efc975b40e7553819"],
                retrieved: "21f5dffb8d31a27790cdd14788661fc9" },
        ],
        aggregated: Some(&["f7ab8b3188d1442635c498226fb31a45", "86d52e92ff1e9baf02aeb2f3ff73309d", "929c2f0489ea1e0a979e4d8923795d3d"]),
        layerwise: &[
            &["cc68fcb83a62976358b66a4b964642b1", "bbece7cc17edb47ca0c60c0d13cdf63f", "c8adc3380e53e9e122bd9a4f3f4bc239"],
            &["2abbce9f7f1d9418dff1c183842c8544", "9bf05938dcd9b44eb9932532ff710959", "03b11b0e585014c9eb6117331bee8017"],
            &["4f9404bae50f532c4134452cd56e85d5", "7b2274bc034fd5dd8ea999687393af53", "1a341ee395e8a88066773091a3c24068"],
        ],
    },
    Case {
        name: "fused hnd, layers packed in blocks", hint: Some("BLHNC"), chunk: 16, separate: false, skip: 8, nbytes: 2688,
        tensors: &[
            ("int8", &[7, 3, 4, 16], &[384, 64, 16, 1], 0),
            ("int8", &[7, 3, 4, 16], &[384, 64, 16, 1], 192),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_NH_BS_CS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 1536, null: &[false, false],
                stored: &["c7eba968e3cef8bf8a6b82253da8610d", "ef12efae2e84c82623dd4431cddd1801"],
                retrieved: "320a3d099b66392a958c44dc0fce669f" },
        ],
        aggregated: Some(&["00165a9b9d8bbc6da4c5350766cbee27", "b9f61ad6ede7e7d4827ef4166bdd572f", "907cb1e8add7179616f94071ac3a60fd"]),
        layerwise: &[
            &["d171a8b9aad8543e692ca57fb2522ba5", "6f557ee67cc1b8b038da92781e5d89ca", "0c3b4eebbb57ff3dcc704b96e424cd26"],
            &["c84d0151ac5ec09c600c94128a7db17a", "362fa5df1ee00e817a085ea30487507c", "18fe03ae08f7552a934e5551855cdb5d"],
        ],
    },
    Case {
        name: "one head, packed, tied strides", hint: Some("BLNHC"), chunk: 16, separate: false, skip: 5, nbytes: 1792,
        tensors: &[
            ("float16", &[7, 1, 4, 16], &[128, 16, 16, 1], 0),
            ("float16", &[7, 1, 4, 16], &[128, 16, 16, 1], 64),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_BS_NH_CS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 1024, null: &[false, false],
                stored: &["9cac47c956fc60719cef7a7f8bf7fed4", "709e86103bd6eb3c5f4fa0fcc8dc986e"],
                retrieved: "1324c7c772ff9d635b1fbd6905fc4236" },
        ],
        aggregated: Some(&["ea0e4acb172f92dc8d64b4073b60d450", "88c9bfa3bdf63e898f08d349cf28e03c", "e89c264143f9e17e875920163995f639"]),
        layerwise: &[
            &["085ac8372e0f971f0ddbc4e93162109a", "bbf0924edc68a79e87636fa1923e0998", "b3f99135e39f6f5b131a88a144b5801a"],
            &["68ab1ceb3fc36fe889275ee5d115eba5", "ac87c11536e8c2b66cdbe562d0e38988", "c34915afaebef1471b5751a9c4828d3f"],
        ],
    },
    Case {
        name: "mla padded", hint: Some("NHD"), chunk: 16, separate: false, skip: 12, nbytes: 2800,
        tensors: &[
            ("bfloat16", &[7, 4, 24], &[100, 24, 1], 0),
            ("bfloat16", &[7, 4, 24], &[100, 24, 1], 700),
        ],
        infos: &[
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_NB_BS_HS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 1536, null: &[false, false],
                stored: &["8d4c00202a406807f1f91df985362f7a", "d7c40cbdfbaf6e80f9adcaee24839614"],
                retrieved: "91e9536a51bd31c93af7ffca6bffb3ea" },
        ],
        aggregated: Some(&["08aadabe6154decbe43864af2c264a7d", "75a0c69b15b54ac083cd1387a85b25dc", "53d5207a4fab78061422eb04f0f23e0b"]),
        layerwise: &[
            &["a76b4df11366e7c8f068038be7e15bb1", "a3c7eeb054c1302e8937bb3deda1884c", "ac7de819364abea3537bd44868204b8c"],
            &["2f806e4b815d5c77f84e0388d8174681", "eb47a108cebd4a1784e203720438497f", "2d0e3471cf4c2afa91ccefde0be636e3"],
        ],
    },
    Case {
        name: "hybrid in one object", hint: Some("NHD"), chunk: 16, separate: false, skip: 18, nbytes: 13104,
        tensors: &[
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 0),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 1200),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 2400),
            ("uint8", &[9, 2, 24], &[48, 24, 1], 7200),
            ("uint8", &[9, 2, 24], &[48, 24, 1], 7700),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 0),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 4200),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 5400),
        ],
        infos: &[
            (0, &[0], 4, -1, 0, false),
            (1, &[1], 4, 8, 0, false),
            (2, &[2], 4, 20, 0, false),
            (0, &[3, 4], 8, -1, 0, false),
            (3, &[6], 4, 16, 2, false),
            (4, &[7], 4, 16, 0, true),
        ],
        ids: &[&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 0, 0, 0, 2, 1, 8, 7], &[8, 7, 6, 5, 4, 3, 2, 1], &[1, 2, 4, 8], &[0, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 5]],
        kernel: &[
            ("NL_X_TWO_NB_BS_NH_HS", &[0], 4, 4, 16),
            ("NL_X_TWO_NB_BS_NH_HS", &[1], 4, 4, 8),
            ("NL_X_TWO_NB_BS_NH_HS", &[2], 4, 4, 16),
            ("NL_X_NB_BS_HS", &[3, 4], 8, 2, 4),
            ("NL_X_TWO_NB_BS_NH_HS", &[6], 4, 4, 16),
            ("NL_X_TWO_NB_BS_NH_HS", &[7], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0, 1, 2, 3, 4, 5], window: -1, kind: "attention", bytes: 5312, null: &[false, false],
                stored: &["944b3eec774040b91ab0fbab71edbcaf", "e053a927e136cd31938f8dfef60a9155"],
                retrieved: "6e7c1fb33814b179fbf5d1249fca7d99" },
        ],
        aggregated: None,
        layerwise: &[],
    },
    Case {
        name: "hybrid in several objects", hint: Some("NHD"), chunk: 16, separate: true, skip: 14, nbytes: 13104,
        tensors: &[
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 0),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 1200),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 2400),
            ("uint8", &[9, 2, 24], &[48, 24, 1], 7200),
            ("uint8", &[9, 2, 24], &[48, 24, 1], 7700),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 0),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 4200),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 5400),
        ],
        infos: &[
            (0, &[0], 4, -1, 0, false),
            (1, &[1], 4, 8, 0, false),
            (2, &[2], 4, 20, 0, false),
            (0, &[3, 4], 8, -1, 0, false),
            (3, &[6], 4, 16, 2, false),
            (4, &[7], 4, 16, 0, true),
        ],
        ids: &[&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 0, 0, 0, 2, 1, 8, 7], &[8, 7, 6, 5, 4, 3, 2, 1], &[1, 2, 4, 8], &[0, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 5]],
        kernel: &[
            ("NL_X_TWO_NB_BS_NH_HS", &[0], 4, 4, 16),
            ("NL_X_TWO_NB_BS_NH_HS", &[1], 4, 4, 8),
            ("NL_X_TWO_NB_BS_NH_HS", &[2], 4, 4, 16),
            ("NL_X_NB_BS_HS", &[3, 4], 8, 2, 4),
            ("NL_X_TWO_NB_BS_NH_HS", &[6], 4, 4, 16),
            ("NL_X_TWO_NB_BS_NH_HS", &[7], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0, 3], window: -1, kind: "attention", bytes: 1216, null: &[false, false],
                stored: &["d0673c1c7a5cf77846bfa97b87214ba3", "6547c7cd2307349a3897a81678005a3c"],
                retrieved: "218a5eadeff79cba15bc013f3491756e" },
            Object { kernel_groups: &[1], window: 1, kind: "attention", bytes: 1024, null: &[true, false],
                stored: &["184d9d41e060346f1bf3cb05f576c41d", "7c13c41e94f50aec025cef00133cee34"],
                retrieved: "64ca0ea9257ea9fc4224a24b515f0c25" },
            Object { kernel_groups: &[2], window: 2, kind: "attention", bytes: 1024, null: &[false, false],
                stored: &["3f94801e17e38d51202c3d50305b276a", "46d175a56c57d4c408772b649f21e9d6"],
                retrieved: "7248fe9f9d39217b604e172f944237e4" },
            Object { kernel_groups: &[5], window: 1, kind: "recurrent", bytes: 1024, null: &[true, false],
                stored: &["4994cbc65df9db79d6ad010dd61479a4", "f68b77da7235b1782bfd1c219dd7d8d8"],
                retrieved: "de82c6a9f3b9f801bbe2a327b9997e97" },
            Object { kernel_groups: &[4], window: 1, kind: "aux", bytes: 1024, null: &[true, true],
                stored: &["515f42b8923b2911523b4c0b6a7059e4", "515f42b8923b2911523b4c0b6a7059e4"],
                retrieved: "4ced0715c03cfc75a764c21ba771d7db" },
        ],
        aggregated: None,
        layerwise: &[],
    },
    Case {
        name: "excluded layer", hint: Some("NHD"), chunk: 16, separate: false, skip: 0, nbytes: 7104,
        tensors: &[
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 0),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 16, 8, 1], 1200),
            ("float16", &[2, 9, 4, 2, 8], &[576, 64, 8, 32, 1], 2400),
        ],
        infos: &[
            (0, &[0, 1], 0, -1, 0, false),
        ],
        ids: &[&[1, 2, 3, 5, 6, 0, 4, 3]],
        kernel: &[
            ("NL_X_TWO_NB_BS_NH_HS", &[0, 1], 4, 4, 16),
        ],
        objects: &[
            Object { kernel_groups: &[0], window: -1, kind: "attention", bytes: 2048, null: &[false, false],
                stored: &["5dca2a262da0e0976584745e25ccb405", "ad10c6d84374a0c918442c631ed58660"],
                retrieved: "35168e3b2f46dc074d12add5662d5092" },
        ],
        aggregated: Some(&["defdbb8148e9e09110c5e290a9f38057", "6698fa945ff11d14390be6457a6f3d5a", "fc247e0bc3999a7bfd9528c8059af415"]),
        layerwise: &[
            &["12cf9f78be0b256536c08925ff711f8a", "1919c9d02695caa00ec030cc8ed33f6d", "2b2dde9f41d3cbc03cd019a5a3453006"],
            &["2f950ad453488be18d4d7c60cf4a1a0e", "1e7a32cc8b7fdc9f457578928d16babf", "8e8a0fed6dcf75b76d7e0a64c27b4dd2"],
            &["b5145eab5b767240a687be3e645e6c33", "193de55a3a72e7a8734c47fb2c4446b8", "1842cba5548f996dbb4ecfa1119273a3"],
        ],
    },
];
