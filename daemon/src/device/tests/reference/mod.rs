//! Plans, and what is not stored at all, against a naive reference.
#![forbid(unsafe_code)]

mod case;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseResult, TestRunner};

use self::case::{CHUNK, CHUNKS, Case, NOWHERE, Pair, case};
use super::super::groups::KvGeometry;
use super::super::plan::{ChunkPlan, CopyRun, PlanError, check_coverage, null_chunks, skipped_in_chunk};

/// Requests of a run; enough that each class of them comes up, see [`every_class_of_requests_comes_up`].
const CASES: u32 = 3000;

fn moved(run: CopyRun) -> impl Iterator<Item = Pair> {
    let CopyRun { tensor, tensor_offset, object_offset, len, count, tensor_step, object_step } = run;
    (0..count).flat_map(move |piece| {
        (0..len).map(move |byte| {
            let (from, to) = (tensor_offset + piece * tensor_step, object_offset + piece * object_step);
            (tensor, (from + byte) as usize, (to + byte) as usize)
        })
    })
}

/// What is done for a request is what the reference does.
fn check(case: &Case) -> TestCaseResult {
    let geometry = case.geometry();
    for chunks in 0..CHUNKS + 2 {
        let covered = check_coverage(&geometry, &case.ids, chunks);
        prop_assert_eq!(covered.is_ok(), case.covers(chunks), "{} chunks: {:?}", chunks, covered);
    }
    let mut groups: Vec<usize> =
        geometry.object_groups.iter().flat_map(|group| group.kernel_groups.clone()).collect();
    groups.sort_unstable();
    prop_assert_eq!(groups, (0..case.specs.len()).collect::<Vec<_>>(), "each group is in one object");

    let null = null_chunks(&geometry, &case.ids, CHUNKS, case.null);
    for (number, object_group) in geometry.object_groups.iter().enumerate() {
        let groups = &object_group.kernel_groups;
        for chunk in 0..CHUNKS {
            // The peer's rule: an object without any block is not stored, one with a block is, whatever its other blocks are.
            let is_null = groups.iter().all(|group| case.is_null(*group, chunk));
            prop_assert_eq!(null[number][chunk as usize], is_null);
            // A store copies all of it; a retrieve may skip some, and knows of no null blocks.
            if !is_null {
                copies(case, &geometry, number, chunk, 0)?;
            }
            copies(case, &geometry, number, chunk, case.skip)?;
        }
    }
    Ok(())
}

/// The plan of a chunk moves the bytes of an element-wise copy.
fn copies(case: &Case, geometry: &KvGeometry, group: usize, chunk: u64, skip: u64) -> TestCaseResult {
    let expected = case.element_wise(&geometry.object_groups[group].kernel_groups, chunk, skip);
    let Some(skip_tokens) = skipped_in_chunk(geometry, chunk, skip) else {
        prop_assert_eq!(expected.map(|(pairs, _)| pairs), Some(Vec::new()), "skipped whole");
        return Ok(());
    };
    let plan = ChunkPlan::new(geometry, group, &case.ids, chunk, skip_tokens);
    let Some((mut expected, bytes)) = expected else {
        prop_assert!(matches!(plan, Err(PlanError::BlockRange { block: NOWHERE, .. })), "{:?}", plan);
        return Ok(());
    };
    let plan = plan.expect("blocks that exist");
    let mut planned: Vec<_> = plan.runs().flat_map(moved).collect();
    prop_assert_eq!(planned.len() as u64, plan.bytes());
    planned.sort_unstable_by_key(|(_, _, to)| *to);
    expected.sort_unstable_by_key(|(_, _, to)| *to);
    prop_assert_eq!(&planned, &expected);

    // Every byte of the object is written once: by a copy, or because nothing is copied there.
    prop_assert_eq!(plan.object_bytes(), bytes as u64);
    let mut written = vec![0; bytes];
    planned.iter().for_each(|(_, _, to)| written[*to] += 1);
    plan.untouched().flatten().for_each(|at| written[at as usize] += 1);
    // But for what is skipped.
    let least = if skip == 0 { 1 } else { 0 };
    prop_assert!(written.iter().all(|times| (least..=1).contains(times)));
    Ok(())
}

proptest! {
    // More of them where `PROPTEST_CASES` says so.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(CASES)))]
    #[test]
    fn plans_move_the_bytes_of_an_element_wise_copy(case in case()) {
        check(&case)?;
    }
}

/// The layouts of [`classes`].
const LAYOUTS: [&str; 10] = [
    "KvFirstNhd",
    "KvFirstHnd",
    "BlocksFirstNhd",
    "BlocksFirstHnd",
    "FusedNhd",
    "FusedNhd padded",
    "FusedHnd",
    "FusedHnd padded",
    "Mla",
    "Mla padded",
];
/// Of each layout.
const OF_A_LAYOUT: [&str; 14] = [
    "full attention",
    "a window within a chunk",
    "a window of a chunk or more",
    "no skip",
    "a skip within a block",
    "a skip of blocks before the window",
    "a skip of blocks that would be copied",
    "a skip of the whole chunk",
    "no null block",
    "null blocks before the window alone",
    "null blocks among those that are copied",
    "null blocks wherever something is copied",
    "a null chunk in an object that is stored",
    "a null chunk in an object that is not",
];
/// Of a request.
const OF_A_REQUEST: [&str; 6] = [
    "a null block that does not exist is to be copied",
    "a null block that does not exist is not to be copied",
    "no block is null by configuration",
    "objects of several groups",
    "several objects",
    "ids behind the last chunk",
];

/// What a request is an example of.
fn classes(case: &Case) -> Vec<String> {
    let geometry = case.geometry();
    let mut classes = Vec::new();
    let mut of_request = |is: bool, class: usize| is.then(|| classes.push(OF_A_REQUEST[class].to_owned()));
    let groups = 0..case.specs.len();
    let to_be_copied = |group| (0..CHUNKS).flat_map(move |chunk| case.copied(group, chunk, 0));
    let nowhere = groups.clone().any(|group| to_be_copied(group).any(|(_, block)| block == NOWHERE));
    of_request(nowhere, 0);
    let per_chunk = |group: usize| CHUNK / case.specs[group].tokens_per_block();
    let needed = |group: usize| case.ids[group].iter().take((CHUNKS * per_chunk(group)) as usize);
    of_request(!nowhere && groups.clone().any(|group| needed(group).any(|id| *id == NOWHERE)), 1);
    of_request(case.null == u64::MAX, 2);
    of_request(geometry.object_groups.iter().any(|group| group.kernel_groups.len() > 1), 3);
    of_request(geometry.object_groups.len() > 1, 4);
    of_request(groups.clone().any(|group| needed(group).len() < case.ids[group].len()), 5);

    for object_group in &geometry.object_groups {
        for (&group, chunk) in
            object_group.kernel_groups.iter().flat_map(|group| (0..CHUNKS).map(move |chunk| (group, chunk)))
        {
            let (spec, format) = (&case.specs[group], geometry.kernel_groups[group].format);
            let padded = if spec.is_padded() { " padded" } else { "" };
            let window = match spec.window_is_short() {
                None => 0,
                Some(true) => 1,
                Some(false) => 2,
            };
            let skipped = case.skip.saturating_sub(chunk * CHUNK);
            let skip = match skipped / spec.tokens_per_block() {
                _ if skipped == 0 => 3,
                _ if skipped >= CHUNK => 7,
                0 => 4,
                blocks if blocks <= spec.kept_from() => 5,
                _ => 6,
            };
            let first = chunk * per_chunk(group);
            let is_null = |position: &u64| case.ids[group][(first + position) as usize] == case.null;
            let before = (0..spec.kept_from()).filter(is_null).count();
            let inside = (spec.kept_from()..per_chunk(group)).filter(is_null).count() as u64;
            let all_null = object_group.kernel_groups.iter().all(|group| case.is_null(*group, chunk));
            let null = match (case.is_null(group, chunk), before, inside) {
                (true, ..) => {
                    if all_null {
                        13
                    } else {
                        12
                    }
                }
                (false, 0, 0) => 8,
                (false, _, 0) => 9,
                (false, _, inside) if inside == per_chunk(group) - spec.kept_from() => 11,
                (false, ..) => 10,
            };
            let of_layout = [window, skip, null].map(|class| OF_A_LAYOUT[class]);
            classes.extend(of_layout.map(|class| format!("{format:?}{padded}, {class}")));
        }
    }
    classes
}

/// As many requests as a run of the property above has, the same each time: all of it is really looked at.
#[test]
fn every_class_of_requests_comes_up() {
    let of_layouts = LAYOUTS.iter().flat_map(|layout| OF_A_LAYOUT.map(|class| format!("{layout}, {class}")));
    let mut seen: BTreeMap<String, u32> =
        of_layouts.chain(OF_A_REQUEST.map(str::to_owned)).map(|class| (class, 0)).collect();
    let mut runner = TestRunner::deterministic();
    for _ in 0..CASES {
        let case = case().new_tree(&mut runner).expect("a request").current();
        check(&case).expect("as the reference does");
        for class in classes(&case) {
            *seen.get_mut(&class).unwrap_or_else(|| panic!("{class:?} is in no list")) += 1;
        }
    }
    let unseen: Vec<_> = seen.iter().filter(|(_, times)| **times == 0).collect();
    assert!(unseen.is_empty(), "never seen: {unseen:?}; all: {seen:#?}");
}
