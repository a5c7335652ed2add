//! Request bodies, bounded in size and time, whether they announce a length or come in chunks.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use warp::Stream;
use warp::http::{HeaderMap, StatusCode, header};

use super::answer::{Answer, detail};
use crate::telemetry::{HttpCounters, HttpRefusal};

/// Time for a body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The whole body, empty if there is none, or the answer to one that is too large, too slow or broken.
pub(super) async fn read<B: Buf, E: std::fmt::Display>(
    headers: &HeaderMap,
    stream: impl Stream<Item = Result<B, E>>,
    most: usize,
    counters: &HttpCounters,
) -> Result<Bytes, Answer> {
    let refused = |reason: HttpRefusal, answer: Answer| {
        counters.refuse(reason);
        answer
    };
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(refused(HttpRefusal::TooLarge, too_large(most)));
    }
    match tokio::time::timeout(BODY_TIMEOUT, collect(stream, most)).await {
        Ok(result) => result.map_err(|(reason, answer)| refused(reason, answer)),
        Err(_) => {
            let answer = detail(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into());
            Err(refused(HttpRefusal::Slow, answer))
        }
    }
}

async fn collect<B: Buf, E: std::fmt::Display>(
    stream: impl Stream<Item = Result<B, E>>,
    most: usize,
) -> Result<Bytes, (HttpRefusal, Answer)> {
    let mut stream = pin!(stream);
    let mut body = BytesMut::new();
    while let Some(piece) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
        let piece = piece
            .map_err(|error| (HttpRefusal::Broken, detail(StatusCode::BAD_REQUEST, error.to_string())))?;
        if body.len() + piece.remaining() > most {
            return Err((HttpRefusal::TooLarge, too_large(most)));
        }
        bytes::BufMut::put(&mut body, piece);
    }
    Ok(body.freeze())
}

fn too_large(most: usize) -> Answer {
    detail(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"))
}
