/// What stands for bytes that are no text.
const NO_TEXT: &str = "\u{fffd}";

/// Makes text of the bytes that tokens stand for, and ends it before a stop sequence.
///
/// Bytes are held back while they may be the beginning of a character, and text while it may be the beginning of a stop sequence.
pub(crate) struct Text {
    stops: Vec<String>,
    bytes: Vec<u8>,
    held: String,
}

impl Text {
    pub(crate) const fn new(stops: Vec<String>) -> Self {
        Self { stops, bytes: Vec::new(), held: String::new() }
    }

    /// Adds bytes. Gives the text that is certain now, and whether it ends here.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> (String, bool) {
        self.bytes.extend_from_slice(bytes);
        let mut read = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.held.push_str(chunk.valid());
            read += chunk.valid().len();
            let invalid = chunk.invalid();
            let unfinished = read + invalid.len() == self.bytes.len() && may_become_a_character(invalid);
            if !invalid.is_empty() && !unfinished {
                self.held.push_str(NO_TEXT);
                read += invalid.len();
            }
        }
        self.bytes.drain(..read);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        let certain = self.held.len() - self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let uncertain = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, uncertain), false)
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn finish(mut self) -> String {
        if !self.bytes.is_empty() {
            self.held.push_str(NO_TEXT);
        }
        self.held
    }
}

/// True for bytes at the end of a text that lack others to be a character.
fn may_become_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// How many bytes at the end of `text` are the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(index, _)| index).filter(|index| *index > 0);
    starts.filter(|length| text.as_bytes().ends_with(stop.as_bytes().split_at(*length).0)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes the pieces, and gives each part and whether a stop sequence ended the text.
    fn all(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut text = Text::new(stops.iter().map(ToString::to_string).collect());
        let mut parts = Vec::new();
        for piece in pieces {
            let (part, ended) = text.push(piece);
            parts.push(part);
            if ended {
                return (parts, true);
            }
        }
        parts.push(text.finish());
        (parts, false)
    }

    #[test]
    fn characters_come_whole() {
        let (parts, _) = all(&[], &[b"a\xf0\x9f", b"\x98", b"\x80b", b"\xe2\x82"]);
        assert_eq!(parts, ["a", "", "\u{1f600}b", "", "\u{fffd}"]);
        let (parts, _) = all(&[], &[b"\xff", b"\xe2\x28", b"\xc3"]);
        assert_eq!(parts, ["\u{fffd}", "\u{fffd}(", "", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_sequence_is_found_across_pieces_and_never_given() {
        assert_eq!(all(&["END"], &[b"one E", b"N", b"D two"]), (vec!["one ".into(), String::new(), String::new()], true));
        assert_eq!(all(&["END"], &[b"one E", b"N", b"E two"]).0.concat(), "one ENE two");
        assert_eq!(all(&["END"], &[b"one EN"]).0, ["one ", "EN"]);
        assert_eq!(all(&["\u{20ac}!"], &[b"5 \xe2\x82", b"\xac", b"!"]), (vec!["5 ".into(), String::new(), String::new()], true));
        assert_eq!(all(&["aab"], &[b"aaa", b"ab"]).0.concat(), "aa");
    }

    #[test]
    fn the_first_of_several_stop_sequences_ends_the_text() {
        assert_eq!(all(&["two", "one"], &[b"zero one two"]), (vec!["zero ".into()], true));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_the_same_text(bytes in prop::collection::vec(prop::sample::select(b"ab\xe2\x82\xac\xf0\x9f".to_vec()), 0..40), size in 1_usize..6) {
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let pieces: Vec<_> = bytes.chunks(size).collect();
            prop_assert_eq!(all(&[], &pieces).0.concat(), whole.clone());
            let (parts, ended) = all(&["aba", "\u{20ac}"], &pieces);
            let end = [whole.find("aba"), whole.find('\u{20ac}')].into_iter().flatten().min();
            prop_assert_eq!(ended, end.is_some());
            prop_assert_eq!(parts.concat(), &whole[..end.unwrap_or(whole.len())]);
        }
    }
}
