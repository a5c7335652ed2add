//! Listing a bucket, first what starts with a slash (which the client's paths leave out), then what comes behind.
//!
//! Keys that start with a character below the slash (space to dot) are not listed; no model's name does.
#![forbid(unsafe_code)]

use lmcache_proto::object_key::ObjectKey;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};

use super::super::adapter::{ListPage, Listed};
use super::super::error::Trouble;
use super::trouble;

/// Most that one request is answered with.
const MOST: usize = 1000;

pub(super) async fn page(bucket: &AmazonS3, from: Option<&str>, limit: usize) -> Result<ListPage, Trouble> {
    let mut page = ListPage::default();
    let (mut slashed, mut token) = match from {
        None => (true, None),
        Some(text) => {
            (text.starts_with('/'), text.get(1..).filter(|token| !token.is_empty()).map(str::to_owned))
        }
    };
    loop {
        let options = PaginatedListOptions {
            max_keys: Some(limit.clamp(1, MOST)),
            // A token knows where it goes on.
            offset: (!slashed && token.is_none()).then(|| "/\u{10ffff}".to_owned()),
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let answer = bucket.list_paginated(slashed.then_some("/"), options).await;
        let answer = answer.map_err(|error| trouble("ListObjectsV2", &error))?;
        page.objects.extend(answer.result.objects.into_iter().filter_map(|object| {
            let path = object.location.as_ref();
            let name = if slashed { format!("/{path}") } else { path.to_owned() };
            let key = ObjectKey::from_native_key(&name)?;
            Some(Listed { key, bytes: object.size, modified: Some(object.last_modified.into()) })
        }));
        token = answer.page_token;
        if token.is_none() && !slashed {
            return Ok(page);
        }
        slashed = slashed && token.is_some();
        if page.objects.len() >= limit {
            let phase = if slashed { '/' } else { '.' };
            page.next = Some(format!("{phase}{}", token.unwrap_or_default()));
            return Ok(page);
        }
    }
}
