//! The same registrations as [`super::golden`], through real segments.

use md5::{Digest, Md5};

use super::super::checksum::Checksums;
use super::super::copy::{ObjectMut, ObjectRef};
use super::super::groups::KvGeometry;
use super::super::plan::{check_coverage, null_chunks, skipped_in_chunk};
use super::golden::{CASES, Case};
use super::*;

fn register(case: &Case, worker: &Worker) -> Registration {
    let tensors = case.tensors.iter().map(|(dtype, shape, stride, offset)| {
        worker.tensor(case.nbytes, metadata(dtype, shape, stride, *offset))
    });
    let mut request = request(tensors.collect(), hints(case.hint));
    let infos = case.infos.iter().map(|&(group, layers, tokens, window, tag, recurrent)| EngineGroupInfo {
        engine_group_id: group,
        layer_indices: layers.to_vec(),
        tokens_per_block: tokens,
        sw_size_tokens: window,
        extra_object_group_tag: tag,
        recurrent_state: recurrent,
    });
    request.engine_group_infos = infos.collect();
    let options = Options { separate_object_groups: case.separate, ..options(case.chunk) };
    Registration::new(&request, &options).expect(case.name)
}

fn hex(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same_geometry(case: &Case, geometry: &KvGeometry) {
    assert_eq!(geometry.kernel_groups.len(), case.kernel.len(), "{}", case.name);
    for (group, &(format, layers, tokens, slots, kept)) in geometry.kernel_groups.iter().zip(case.kernel) {
        let ours: Vec<usize> = group.layers.iter().map(|layer| layer.tensor).collect();
        assert_eq!((group.format.name(), &ours[..]), (format, layers), "{}", case.name);
        let sizes = (group.tokens_per_block, group.slots_per_block, group.slots_kept);
        assert_eq!(sizes, (tokens, slots, kept), "{}", case.name);
    }
    assert_eq!(geometry.object_groups.len(), case.objects.len(), "{}", case.name);
    for (group, theirs) in geometry.object_groups.iter().zip(case.objects) {
        assert_eq!(group.kernel_groups, theirs.kernel_groups, "{}", case.name);
        assert_eq!(
            (group.window_chunks, group.layout.bytes()),
            (theirs.window, theirs.bytes),
            "{}",
            case.name
        );
        let kind = match (group.aux, group.recurrent) {
            (true, _) => "aux",
            (_, true) => "recurrent",
            _ => "attention",
        };
        assert_eq!(kind, theirs.kind, "{}", case.name);
    }
}

#[test]
fn groups_objects_and_checksums_are_those_of_the_peer() {
    for case in CASES {
        let worker = Worker::filled(case.nbytes);
        let registration = register(case, &worker);
        same_geometry(case, &registration.geometry);
        let ids: Vec<Vec<u64>> = case.ids.iter().map(|ids| ids.to_vec()).collect();
        check_coverage(&registration.geometry, &ids, 2).expect(case.name);
        let null = null_chunks(&registration.geometry, &ids, 2, 0);
        for (group, theirs) in case.objects.iter().enumerate() {
            assert_eq!(null[group], theirs.null, "{}", case.name);
            for (chunk, digest) in theirs.stored.iter().enumerate() {
                let plan = registration.plan(group, &ids, chunk as u64, 0).expect(case.name);
                let mut object = vec![0xa5; theirs.bytes as usize];
                // SAFETY: a private buffer of that length.
                let mut slot = unsafe { ObjectMut::new(object.as_mut_ptr(), object.len()) };
                let copied = registration.store(&plan, &mut slot).expect(case.name);
                assert_eq!(copied, plan.bytes(), "{}", case.name);
                assert_eq!(hex(&object), *digest, "{} group {group} chunk {chunk}", case.name);
            }
        }
        match case.aggregated {
            Some(digests) => {
                let ours = registration.checksums(&[3, 1, 1, 0, 2], 2, false).expect(case.name);
                assert_eq!(ours, Checksums::Aggregated(digests.iter().map(|d| d.to_string()).collect()));
                let Checksums::Layerwise(ours) =
                    registration.checksums(&[3, 1, 1, 0, 2], 2, true).expect(case.name)
                else {
                    panic!("layerwise");
                };
                assert_eq!(ours, case.layerwise, "{}", case.name);
            }
            None => assert!(registration.checksums(&[1], 1, false).is_err(), "{}", case.name),
        }
    }
}

#[test]
fn retrieves_write_what_the_peer_writes() {
    for case in CASES {
        for (group, theirs) in case.objects.iter().enumerate() {
            let worker = Worker::new(case.nbytes);
            let registration = register(case, &worker);
            let ids: Vec<Vec<u64>> = case.ids.iter().map(|ids| ids.to_vec()).collect();
            for chunk in 0..2 {
                let Some(skip) = skipped_in_chunk(&registration.geometry, chunk, case.skip) else { continue };
                let plan = registration.plan(group, &ids, chunk, skip).expect(case.name);
                let object: Vec<u8> = (0..theirs.bytes).map(|at| pattern(1000 + chunk + at)).collect();
                // SAFETY: a private buffer of that length.
                let slot = unsafe { ObjectRef::new(object.as_ptr(), object.len()) };
                registration.retrieve(&plan, slot).expect(case.name);
            }
            assert_eq!(hex(&worker.content()), theirs.retrieved, "{} group {group}", case.name);
        }
    }
}
