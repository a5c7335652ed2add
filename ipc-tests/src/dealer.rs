//! A client's socket as libzmq and LMCache's client make one: it numbers its requests, and goes on with the numbers when it
//! has to connect again. It never asks again.

use bytes::{Buf, Bytes, BytesMut};
use lmcache_client::operation_frame;
use lmcache_proto::wire::{OpCode, Operation, Reader, Request, Response, Writer, encode_request};
use lmcache_proto::zmtp::{self, Decoder, Item};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Either kind of connection.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The socket.
pub struct Dealer {
    stream: Box<dyn Wire>,
    inbuf: BytesMut,
    decoder: Decoder,
    next: u64,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Number of the request.
    pub number: u64,
    /// Its operation.
    pub operation: Operation,
    /// The answer's frame; `None` if it has none.
    pub frame: Option<Bytes>,
}

impl Answer {
    /// Whether this is `response`.
    pub fn says(&self, response: &Response) -> bool {
        self.frame.as_deref() == response.encode().as_deref()
    }
}

impl Dealer {
    /// Connects to `tcp://host:port` or `ipc:///path` and shakes hands.
    ///
    /// # Panics
    /// If nobody accepts.
    pub async fn connect(endpoint: &str) -> Dealer {
        let (stream, inbuf) = open(endpoint).await;
        Dealer { stream, inbuf, decoder: Decoder::new(1 << 20), next: 0 }
    }

    /// The same socket on a new connection.
    ///
    /// # Panics
    /// As [`Dealer::connect`].
    pub async fn reconnect(&mut self, endpoint: &str) {
        (self.stream, self.inbuf) = open(endpoint).await;
        self.decoder = Decoder::new(1 << 20);
    }

    /// Sends requests in one piece and returns the number of the first.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn ask(&mut self, requests: &[Request<'_>]) -> u64 {
        let first = self.next;
        let out = self.spell(requests);
        self.send(&out).await;
        first
    }

    /// Sends what [`Dealer::spell`] has made, or a part of it.
    ///
    /// # Panics
    /// If the connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the connection takes requests");
    }

    /// Requests as bytes, with the next numbers.
    pub fn spell(&mut self, requests: &[Request<'_>]) -> BytesMut {
        let mut out = BytesMut::new();
        for request in requests {
            let payload = encode_request(request);
            let (mut uid, op) = (Writer::new(), operation_frame(request.operation()));
            uid.uint(self.next);
            self.next += 1;
            let uid = uid.into_vec();
            let mut frames: Vec<&[u8]> = vec![&uid, &op];
            frames.extend(payload.iter().map(|frame| &frame[..]));
            zmtp::encode(&mut out, &frames);
        }
        out
    }

    /// The number of the next request.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A number is used up by a request that never came.
    pub fn skip(&mut self) {
        self.next += 1;
    }

    /// The next answer.
    ///
    /// # Panics
    /// If the connection ends before, or there is none for a minute.
    pub async fn answer(&mut self) -> Answer {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            loop {
                match self.decoder.next(&mut self.inbuf).expect("ZMTP") {
                    Some(Item::Message(frames)) => return frames,
                    Some(Item::Command(_)) => {}
                    None => {
                        let read = self.stream.read_buf(&mut self.inbuf).await.expect("a connection");
                        assert!(read > 0, "the daemon has ended the connection");
                    }
                }
            }
        });
        let frames = answer.await.expect("an answer");
        let number = Reader::new(&frames[0]).u64().expect("a number");
        let Ok(OpCode::Known(operation)) = OpCode::decode(&frames[1]) else { panic!("{frames:?}") };
        Answer { number, operation, frame: frames.get(2).cloned() }
    }

    /// The answer to request `number`, which all requests before it have had. An answer may come twice: a daemon that was killed
    /// just after it had answered could not say so to the next.
    ///
    /// # Panics
    /// As [`Dealer::answer`].
    pub async fn answer_to(&mut self, number: u64) -> Answer {
        loop {
            let answer = self.answer().await;
            if answer.number >= number {
                assert_eq!(answer.number, number, "{answer:?} came before it");
                return answer;
            }
        }
    }

    /// Waits until the daemon has ended the connection.
    ///
    /// # Panics
    /// If it answers instead.
    pub async fn ends(&mut self) {
        let rest = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            // A reset is an end, too.
            while self.stream.read_buf(&mut self.inbuf).await.is_ok_and(|read| read > 0) {}
        });
        rest.await.expect("the connection ends");
        let item = self.decoder.next(&mut self.inbuf).expect("ZMTP");
        assert!(item.is_none(), "the daemon has answered: {item:?}");
    }
}

async fn open(endpoint: &str) -> (Box<dyn Wire>, BytesMut) {
    let mut stream: Box<dyn Wire> = match endpoint.strip_prefix("ipc://") {
        Some(path) => Box::new(UnixStream::connect(path).await.expect("the daemon listens")),
        None => {
            let address = endpoint.strip_prefix("tcp://").expect("tcp:// or ipc://");
            Box::new(TcpStream::connect(address).await.expect("the daemon listens"))
        }
    };
    stream.write_all(&zmtp::greeting()).await.expect("greeting");
    stream.write_all(&zmtp::ready_dealer()).await.expect("ready");
    let mut inbuf = BytesMut::new();
    while inbuf.len() < zmtp::GREETING_LEN {
        assert!(stream.read_buf(&mut inbuf).await.expect("greeting") > 0, "the daemon greets");
    }
    inbuf.advance(zmtp::GREETING_LEN);
    (stream, inbuf)
}
