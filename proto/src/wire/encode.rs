//! A typed request into payload frames: the client's half.

use super::request::Request;
use super::structs::to_frame;
use super::writer::Writer;

/// Encodes a request's payload frames, as the peer's client does.
pub fn encode_request(request: &Request<'_>) -> Vec<Vec<u8>> {
    fn one(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::new();
        write(&mut w);
        w.into_vec()
    }
    let uint = |value: u64| {
        one(|w| {
            w.uint(value);
        })
    };
    let str = |value: &str| {
        one(|w| {
            w.str(value);
        })
    };
    let bin = |value: &[u8]| {
        one(|w| {
            w.bin(value);
        })
    };
    let blocks = |lists: &[Vec<u64>]| {
        one(|w| {
            w.array(lists.len());
            for list in lists {
                w.array(list.len());
                for id in list {
                    w.uint(*id);
                }
            }
        })
    };
    match request {
        Request::RegisterKvCache(register) => register.encode(),
        Request::UnregisterKvCache { instance_id } | Request::UnregisterEngineDriven { instance_id } => {
            vec![uint(*instance_id)]
        }
        Request::Store { key, instance_id, block_ids, event } => {
            vec![key.encode(), uint(*instance_id), blocks(block_ids), bin(event)]
        }
        Request::Retrieve { key, instance_id, block_ids, event, skip_first_n_tokens } => {
            vec![key.encode(), uint(*instance_id), blocks(block_ids), bin(event), uint(*skip_first_n_tokens)]
        }
        Request::Lookup { key, tp_size } | Request::FreeLookupLocks { key, tp_size } => {
            vec![key.encode(), uint(*tp_size)]
        }
        Request::QueryPrefetchStatus { request_id } | Request::EndSession { request_id } => {
            vec![str(request_id)]
        }
        Request::WaitPrefetchStatus { request_id, timeout } => {
            vec![
                str(request_id),
                one(|w| {
                    w.f64(*timeout);
                }),
            ]
        }
        Request::RegisterEngineDriven(payload) => vec![to_frame(payload)],
        Request::PrepareStore { key, instance_id }
        | Request::PrepareRetrieve { key, instance_id }
        | Request::CommitRetrieve { key, instance_id } => vec![key.encode(), uint(*instance_id)],
        Request::CommitStore { key, instance_id, data } => vec![key.encode(), uint(*instance_id), bin(data)],
        Request::Clear { force } => vec![one(|w| {
            w.bool(*force);
        })],
        Request::GetChunkSize | Request::Noop | Request::GetExperimental => vec![],
        Request::Ping { instance_id } => vec![match instance_id {
            Some(id) => uint(*id),
            None => one(|w| {
                w.nil();
            }),
        }],
        Request::ReportBlockAllocation { instance_id, model_name, records } => {
            vec![uint(*instance_id), str(model_name), to_frame(records)]
        }
        Request::SubscribeKvEvents { instance_id, model_name, cursor, max_events } => vec![
            uint(*instance_id),
            str(model_name),
            one(|w| {
                w.int(*cursor);
            }),
            one(|w| {
                w.int(*max_events);
            }),
        ],
        Request::Authenticate { token } => vec![str(token.0)],
        Request::AttachRing { instance_id, process } => vec![uint(*instance_id), to_frame(process)],
    }
}
