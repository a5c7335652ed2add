//! What a connection may ask for where salts belong to tenants (`--tenant-tokens-file`).
//!
//! The gate stands before every request, [`Engine::may_ask`]. What a request names decides: the salt of its key, and the worker
//! that it speaks for, because the bytes of a store come from a worker's memory and those of a retrieve go there. Requests
//! that name only a request (its status, its end) are about lookups; those know whose they are.
#![forbid(unsafe_code)]

use lmcache_proto::wire::{CacheKey, Request, Response, Secret};
use serde::{Deserialize, Serialize};

use super::instances::Mode;
use super::{Client, Engine, Failure, Refusal, instance_of, registration_of};
use crate::tenants::{TenantId, TokenHash};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Caller {
    /// The connection.
    pub(super) client: u64,
    /// Whose it is.
    pub(super) tenant: Option<TenantId>,
}

impl Client {
    /// What another process has been shown over this connection.
    pub(crate) fn has_shown(&self, token: Option<TokenHash>) {
        if let Some(token) = token {
            self.keep_token(token);
        }
    }

    /// Returns the one that was shown first.
    fn keep_token(&self, token: TokenHash) -> TokenHash {
        if let Some(lane) = &self.lane {
            // Before it counts: a crash in between must not leave a connection that is nobody's.
            lane.has_token();
        }
        *self.token.get_or_init(|| token)
    }

    /// What this one has been shown.
    pub(crate) fn shown(&self) -> Option<TokenHash> {
        self.token.get().copied()
    }
}

impl Engine {
    /// A connection shows whose it is. Once: what it has asked for as one tenant is not another's.
    pub(super) fn authenticate(&self, client: &Client, token: Secret<'_>) -> Result<Response, Failure> {
        let Some(gate) = &self.tenants else {
            return Err((Refusal::Disabled, "tokens of tenants".into()));
        };
        let hash = TokenHash::of(token.0);
        if gate.now().of(hash).is_none() {
            return Err((Refusal::WrongTenant, "nobody's token".into()));
        }
        if client.keep_token(hash) != hash {
            return Err((Refusal::WrongTenant, "this connection has shown another token before".into()));
        }
        Ok(Response::Flag(true))
    }

    /// Whose connection it is; nobody's if it has shown no token, or one that is of no use any more.
    pub(super) fn tenant_of(&self, client: &Client) -> Option<TenantId> {
        let gate = self.tenants.as_ref()?;
        gate.now().of(*client.token.get()?).map(|tenant| tenant.id)
    }

    /// Whether the connection may ask for this. Asked before anything is done for a request.
    pub(super) fn may_ask(&self, client: &Client, request: &Request<'_>) -> Result<(), Failure> {
        let Some(gate) = &self.tenants else { return Ok(()) };
        let refused = |what: String| Err((Refusal::WrongTenant, what));
        match request {
            Request::Authenticate { .. }
            | Request::Noop
            | Request::GetChunkSize
            | Request::GetExperimental
            // Of another's worker: answered as if it were not there, see `ping`.
            | Request::Ping { .. } => return Ok(()),
            // These are about everybody's objects. The admin API has both.
            Request::Clear { .. } | Request::SubscribeKvEvents { .. } => {
                return refused("about the objects of all tenants".into());
            }
            _ => {}
        }
        let tenants = gate.now();
        let tenant = match client.token.get() {
            Some(hash) => match tenants.of(*hash) {
                Some(tenant) => Some(tenant),
                None => return refused("its token is not in the file any more".into()),
            },
            None if gate.is_required() => return refused("without a token (--tenant-token-required)".into()),
            None if !client.origin.is_local => {
                return refused("from another machine, without a token".into());
            }
            None => None,
        };
        if let Some(salt) = key_of(request).map(|key| key.cache_salt) {
            let may = tenant.as_ref().map_or_else(|| !tenants.is_owned(salt), |tenant| tenant.may_use(salt));
            if !may {
                return refused(format!("cache salt {salt:?}"));
            }
        }
        let Some(instance) = instance_of(request) else { return Ok(()) };
        let me = tenant.map(|tenant| tenant.id);
        let other = self.owners(instance).find(|owner| *owner != me);
        // The worker of a tenant that is no more may be replaced.
        let gone = other.flatten().is_some_and(|owner| !tenants.has(owner));
        if other.is_some() && !(gone && registration_of(request).is_some()) {
            return refused(format!("instance {instance}"));
        }
        Ok(())
    }

    /// A connection, for what lookups remember of who made them.
    pub(super) fn caller(&self, client: &Client) -> Caller {
        Caller { client: client.id, tenant: self.tenant_of(client) }
    }

    /// Whether this connection may speak for a worker: it is nobody's yet, or of the same tenant.
    pub(super) fn may_speak_for(&self, client: &Client, instance: u64) -> bool {
        self.tenants.is_none() || self.owners(instance).all(|owner| owner == self.tenant_of(client))
    }

    fn owners(&self, instance: u64) -> impl Iterator<Item = Option<TenantId>> {
        [Mode::EngineDriven, Mode::LmcacheDriven]
            .into_iter()
            .filter_map(move |mode| self.instances.get(instance, mode))
            .map(|worker| worker.owner)
    }
}

fn key_of<'r, 'a>(request: &'r Request<'a>) -> Option<&'r CacheKey<'a>> {
    match request {
        Request::Store { key, .. }
        | Request::Retrieve { key, .. }
        | Request::Lookup { key, .. }
        | Request::FreeLookupLocks { key, .. }
        | Request::PrepareStore { key, .. }
        | Request::CommitStore { key, .. }
        | Request::PrepareRetrieve { key, .. }
        | Request::CommitRetrieve { key, .. } => Some(key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use lmcache_proto::wire::{KeyBuilder, Operation, encode_request};

    use super::super::alone::registration;
    use super::super::{Origin, Outcome};
    use super::*;
    use crate::l1::{L1, L1Config};
    use crate::tenants::Gate;

    const A: &str = "0123456789abcdef-a";

    fn engine(name: &str, dir: &Path, required: bool) -> Arc<Engine> {
        let path = dir.join("tokens");
        std::fs::write(&path, format!("{A} one\n0123456789abcdef-b two\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("chmod");
        let gate = Arc::new(Gate::open(&path, required).expect("a file"));
        let config = L1Config {
            fresh: true,
            ..L1Config::new(format!("lmcached_test_tenancy_{name}_{}", std::process::id()), 1 << 20)
        };
        let l1 = L1::open(&config).expect("memory for a small pool").0;
        l1.discard();
        Engine::alone_with(Arc::new(l1), Duration::from_secs(60), 16, Some(gate))
    }

    fn client(id: u64, is_local: bool) -> Client {
        Client::new(id, "test".into(), Origin { is_local, ..Origin::default() })
    }

    /// A request of every operation, with this salt where it has one.
    fn requests(frame: &[u8]) -> Vec<Request<'_>> {
        let key = || CacheKey::decode(frame).expect("own key");
        let kv_cache = lmcache_proto::wire::RegisterKvCache {
            instance_id: 9,
            kv_cache: Vec::new(),
            model_name: "m".into(),
            world_size: 1,
            engine_type: "vllm".into(),
            layout_hints: lmcache_proto::wire::LayoutHints::default(),
            engine_group_infos: Vec::new(),
        };
        vec![
            Request::RegisterKvCache(Box::new(kv_cache)),
            registration(9),
            Request::Lookup { key: key(), tp_size: 1 },
            Request::QueryPrefetchStatus { request_id: "r" },
            Request::WaitPrefetchStatus { request_id: "r", timeout: 0.0 },
            Request::FreeLookupLocks { key: key(), tp_size: 1 },
            Request::EndSession { request_id: "r" },
            Request::PrepareStore { key: key(), instance_id: 9 },
            Request::CommitStore { key: key(), instance_id: 9, data: b"" },
            Request::PrepareRetrieve { key: key(), instance_id: 9 },
            Request::CommitRetrieve { key: key(), instance_id: 9 },
            Request::Store { key: key(), instance_id: 9, block_ids: vec![], event: b"" },
            Request::Retrieve {
                key: key(),
                instance_id: 9,
                block_ids: vec![],
                event: b"",
                skip_first_n_tokens: 0,
            },
            Request::ReportBlockAllocation { instance_id: 9, model_name: "m", records: vec![] },
            Request::AttachRing { instance_id: 9, process: None },
            Request::UnregisterEngineDriven { instance_id: 9 },
            Request::UnregisterKvCache { instance_id: 9 },
            Request::Clear { force: true },
            Request::SubscribeKvEvents { instance_id: 9, model_name: "m", cursor: 0, max_events: 1 },
        ]
    }

    fn open_to_all() -> Vec<Request<'static>> {
        vec![
            Request::Authenticate { token: Secret(A) },
            Request::Ping { instance_id: Some(9) },
            Request::Noop,
            Request::GetChunkSize,
            Request::GetExperimental,
        ]
    }

    fn frame(salt: &str) -> Vec<u8> {
        KeyBuilder::new("m", 1, "r", &[1; 64]).salt(salt).frame(Some(0), 0, 64)
    }

    fn may(engine: &Engine, client: &Client, request: &Request<'_>) -> bool {
        match engine.may_ask(client, request) {
            Ok(()) => true,
            Err((Refusal::WrongTenant, _)) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn shows(engine: &Engine, client: &Client, token: &str) -> bool {
        engine.authenticate(client, Secret(token)).is_ok()
    }

    #[test]
    fn every_operation_is_behind_the_gate() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine("every", dir.path(), false);
        let frame = frame("one");
        // A new operation has to be put into one of the two lists.
        let listed: Vec<Operation> =
            requests(&frame).iter().chain(&open_to_all()).map(Request::operation).collect();
        for operation in Operation::all() {
            assert_eq!(listed.iter().filter(|listed| **listed == operation).count(), 1, "{operation}");
        }
        let (remote, local, revoked) = (client(1, false), client(2, true), client(3, true));
        revoked.token.set(TokenHash::of("0123456789abcdef-gone")).expect("new");
        for request in open_to_all() {
            assert!(may(&engine, &remote, &request) && may(&engine, &revoked, &request), "{request:?}");
        }
        for request in requests(&frame) {
            assert!(!may(&engine, &remote, &request), "{request:?}");
            assert!(!may(&engine, &revoked, &request), "{request:?}");
            let about_all = matches!(request, Request::Clear { .. } | Request::SubscribeKvEvents { .. });
            assert_eq!(
                may(&engine, &local, &request),
                key_of(&request).is_none() && !about_all,
                "{request:?}"
            );
        }
    }

    #[test]
    fn every_operation_with_a_salt_is_for_those_who_may_use_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine("salts", dir.path(), false);
        let (a, nobody) = (client(1, false), client(2, true));
        assert!(shows(&engine, &a, A) && !shows(&engine, &nobody, "0123456789abcdef-c"));
        for (salt, by_a, by_nobody) in [("one", true, false), ("two", false, false), ("free", false, true)] {
            let frame = frame(salt);
            for request in requests(&frame).iter().filter(|request| request.operation().has_key()) {
                assert_eq!(may(&engine, &a, request), by_a, "{salt}: {request:?}");
                assert_eq!(may(&engine, &nobody, request), by_nobody, "{salt}: {request:?}");
            }
        }
    }

    #[test]
    fn where_a_token_is_required_this_machine_has_to_show_one_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine("required", dir.path(), true);
        let (nobody, a) = (client(1, true), client(2, true));
        assert!(shows(&engine, &a, A));
        let (free, one) = (frame("free"), frame("one"));
        for request in requests(&free) {
            assert!(!may(&engine, &nobody, &request), "{request:?}");
        }
        assert!(may(
            &engine,
            &a,
            &Request::PrepareStore { key: CacheKey::decode(&one).expect("own"), instance_id: 9 }
        ));
        assert!(may(&engine, &nobody, &Request::Ping { instance_id: None }));
    }

    #[test]
    fn a_worker_is_its_tenant_s_until_that_is_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = engine("workers", dir.path(), false);
        let (a, b, nobody) = (client(1, true), client(2, true), client(3, true));
        assert!(shows(&engine, &a, A) && shows(&engine, &b, "0123456789abcdef-b"));
        let (one, two, free) = (frame("one"), frame("two"), frame("free"));
        let register = || {
            requests(&one).into_iter().find(|request| request.operation() == Operation::RegisterEngineDriven)
        };
        let registers = |client: &Client| {
            let request = register().expect("one of them");
            let payload = encode_request(&request);
            match engine.handle(client, request.operation(), &payload) {
                Outcome::Reply(Response::Registered(response)) => response.pool_size > 0,
                _ => panic!("no answer to a registration"),
            }
        };
        let pings = |client: &Client| {
            let pinged = engine.ping(client, Some(9));
            pinged && engine.ping(client, Some(9))
        };
        assert!(registers(&a) && !registers(&b) && !registers(&nobody) && registers(&a));
        for (client, frame) in [(&b, &two), (&nobody, &free)] {
            for request in requests(frame).iter().filter(|request| instance_of(request).is_some()) {
                assert!(!may(&engine, client, request), "{request:?}");
            }
        }
        assert!(
            requests(&one)
                .iter()
                .filter(|request| !matches!(
                    request,
                    Request::Clear { .. } | Request::SubscribeKvEvents { .. }
                ))
                .all(|request| may(&engine, &a, request))
        );
        assert!(pings(&a) && !pings(&b) && !pings(&nobody), "to others it is not there");
        // Its tenant is taken out of the file: the id is free for the others, and the old connection is refused.
        let path = dir.path().join("tokens");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::write(&path, "0123456789abcdef-b two\n").expect("written");
        engine.tenants.as_ref().expect("a gate").reload().expect("a file");
        assert!(!registers(&a) && registers(&b) && pings(&b));
    }
}
