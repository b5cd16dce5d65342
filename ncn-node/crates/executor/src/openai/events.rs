use bytes::BytesMut;
use reqwest::Response;
use tokio_util::codec::{Decoder as _, LinesCodec, LinesCodecError};

/// The longest line, and the longest event, of a stream.
const MAX_BYTES: usize = 1 << 20;

/// Comments keep the connection alive; the other fields of events have no meaning here.
const FIELDS: [&str; 4] = [":", "event:", "id:", "retry:"];
/// What a stream may begin with, and counts for nothing.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// How much is kept of what is no event.
const MAX_OTHER_BYTES: usize = 4 << 10;

/// The events of a response in the format of server-sent events.
pub(super) struct Events {
    response: Response,
    received: BytesMut,
    lines: LinesCodec,
    has_begun: bool,
    has_ended: bool,
    other: String,
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        let (received, lines) = (BytesMut::new(), LinesCodec::new_with_max_length(MAX_BYTES));
        Self { response, received, lines, has_begun: false, has_ended: false, other: String::new() }
    }

    /// What came that is no event, such as an error in another format: its beginning.
    pub(super) fn other(&self) -> &str {
        &self.other
    }

    /// The next event's data; none at the response's end, where the last one needs no empty line after it.
    pub(super) async fn next(&mut self) -> Result<Option<String>, String> {
        let mut event = String::new();
        loop {
            let line = self.line().await?;
            if line.as_ref().is_none_or(String::is_empty) && !event.is_empty() {
                return Ok(Some(event));
            }
            let Some(line) = line else { return Ok(None) };
            if let Some(data) = line.strip_prefix("data:") {
                if event.len() + data.len() > MAX_BYTES {
                    return Err(format!("it sent an event of more than {MAX_BYTES} bytes"));
                }
                if !event.is_empty() {
                    event.push('\n');
                }
                event.push_str(data.strip_prefix(' ').unwrap_or(data));
            } else if !FIELDS.iter().any(|field| line.starts_with(field)) && self.other.len() + line.len() < MAX_OTHER_BYTES {
                self.other.push_str(&line);
                self.other.push('\n');
            }
        }
    }

    /// The next line; none at the response's end.
    async fn line(&mut self) -> Result<Option<String>, String> {
        loop {
            let decoded =
                if self.has_ended { self.lines.decode_eof(&mut self.received) } else { self.lines.decode(&mut self.received) };
            match decoded {
                Ok(Some(mut line)) => {
                    let is_first = !std::mem::replace(&mut self.has_begun, true);
                    if is_first && line.starts_with(BYTE_ORDER_MARK) {
                        line.remove(0);
                    }
                    return Ok(Some(line));
                }
                Ok(None) if self.has_ended => return Ok(None),
                Ok(None) => {}
                Err(LinesCodecError::MaxLineLengthExceeded) => {
                    return Err(format!("it sent a line of more than {MAX_BYTES} bytes"));
                }
                Err(LinesCodecError::Io(error)) => return Err(format!("it sent what is no text: {error}")),
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.received.extend_from_slice(&bytes),
                Ok(None) => self.has_ended = true,
                Err(error) => return Err(format!("its answer broke off: {}", ncn_client::foreign::cause(error))),
            }
        }
    }
}
