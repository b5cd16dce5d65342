use bytes::BytesMut;
use reqwest::Response;
use tokio_util::codec::{Decoder as _, LinesCodec, LinesCodecError};

/// The longest line, and the longest event, of a stream.
const MAX_BYTES: usize = 1 << 20;

/// The events of a response in the format of server-sent events.
pub(super) struct Events {
    response: Response,
    received: BytesMut,
    lines: LinesCodec,
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        Self { response, received: BytesMut::new(), lines: LinesCodec::new_with_max_length(MAX_BYTES) }
    }

    /// The next event's data, or why there is none.
    pub(super) async fn next(&mut self) -> Result<String, String> {
        let mut event = String::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                if !event.is_empty() {
                    return Ok(event);
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if event.len() + data.len() > MAX_BYTES {
                    return Err(format!("it sent an event of more than {MAX_BYTES} bytes"));
                }
                if !event.is_empty() {
                    event.push('\n');
                }
                event.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
            // Comments keep the connection alive; the other fields have no meaning here.
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            match self.lines.decode(&mut self.received) {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => {}
                Err(LinesCodecError::MaxLineLengthExceeded) => {
                    return Err(format!("it sent a line of more than {MAX_BYTES} bytes"));
                }
                Err(LinesCodecError::Io(error)) => return Err(format!("it sent what is no text: {error}")),
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.received.extend_from_slice(&bytes),
                Ok(None) => return Err("its answer ended before it was done".into()),
                Err(error) => return Err(format!("its answer broke off: {}", super::http::causes(error))),
            }
        }
    }
}
