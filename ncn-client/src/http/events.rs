//! A stream of server-sent events (HTML, section 9.2.6), as they arrive.

use bytes::{Buf as _, Bytes, BytesMut};

/// One event. Its id is not read: our events have it in their data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerEvent {
    /// What it is called; empty when it is not.
    pub(super) name: String,
    pub(super) data: Bytes,
}

/// Makes events of bytes.
#[derive(Debug, Default)]
pub(super) struct Events {
    received: BytesMut,
    /// How far it was looked through for a line's end.
    looked: usize,
    name: String,
    data: Option<BytesMut>,
}

impl Events {
    /// Takes in what has arrived. It is kept until the next line's end.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// How many bytes are kept.
    pub(super) fn len(&self) -> usize {
        self.received.len() + self.data.as_ref().map_or(0, BytesMut::len)
    }

    /// The next event, if all of it is there.
    pub(super) fn next(&mut self) -> Option<ServerEvent> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                let name = std::mem::take(&mut self.name);
                if let Some(data) = self.data.take() {
                    return Some(ServerEvent { name, data: data.freeze() });
                }
                continue;
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let (field, mut value) = (line.slice(..colon), line.slice((colon + 1).min(line.len())..));
            if value.first() == Some(&b' ') {
                value.advance(1);
            }
            match &*field {
                b"event" => self.name = String::from_utf8_lossy(&value).into_owned(),
                b"data" => match &mut self.data {
                    Some(data) => {
                        data.extend_from_slice(b"\n");
                        data.extend_from_slice(&value);
                    }
                    // The only line of an event, as a rule, and the only handle of these bytes: they are not copied.
                    none => {
                        drop(line);
                        *none = Some(value.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared)));
                    }
                },
                // Comments, and fields that have no meaning here.
                _ => {}
            }
        }
        None
    }

    /// The next line, without its end.
    fn line(&mut self) -> Option<Bytes> {
        let Some(end) = self.received.get(self.looked..)?.iter().position(|byte| *byte == b'\n') else {
            self.looked = self.received.len();
            return None;
        };
        let mut line = self.received.split_to(self.looked + end);
        self.received.advance(1);
        self.looked = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(line.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of these bytes, when they arrive so many at a time.
    fn events(bytes: &[u8], at_once: usize) -> Vec<(String, String)> {
        let (mut events, mut all) = (Events::default(), Vec::new());
        for piece in bytes.chunks(at_once) {
            events.take(piece);
            while let Some(event) = events.next() {
                all.push((event.name, String::from_utf8(event.data.to_vec()).unwrap()));
            }
        }
        all
    }

    #[test]
    fn events_are_the_same_however_they_arrive() {
        let stream =
            b": a comment\n\nevent: step\nid: 7\ndata: {\"a\":1}\n\ndata:one\r\ndata: two\r\n\r\nevent: none\n\ndata\n\ndata: cut";
        let expected = [("step", "{\"a\":1}"), ("", "one\ntwo"), ("", "")].map(|(name, data)| (name.to_owned(), data.to_owned()));
        for at_once in 1..=stream.len() {
            assert_eq!(events(stream, at_once), expected, "{at_once} bytes at a time");
        }
    }
}
