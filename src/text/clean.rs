//! What CLIP does to a caption before it cuts it into words.
//!
//! `open_clip` repairs text with `ftfy`, unescapes HTML twice, collapses white space and
//! lower-cases. Of `ftfy` everything is here but one thing: undoing a wrong encoding
//! (`cafÃ©`), which needs its statistics of what looks wrong. Such a caption keeps its
//! letters; see the known differences in `docs/checkpoints.md`.

use tokenizers::tokenizer::NormalizedString;

use super::html;

/// Most rounds of repairs; every text met so far is stable after three.
const ROUNDS: usize = 16;

/// What is done to a repaired caption: `open_clip`'s argument `clean`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cleaning {
    /// White space is collapsed, letters become lower case (CLIP's way).
    #[default]
    Lower,
    /// White space is collapsed.
    Whitespace,
    /// ASCII punctuation is removed, underscores are spaces, letters become lower case.
    Canonicalize,
}

impl Cleaning {
    /// A caption as the vocabulary knows it.
    pub(super) fn apply(self, text: &str) -> String {
        let repaired: String = text.split_inclusive('\n').map(repair).collect();

        let plain = html::unescape(&html::unescape(&repaired));
        match self {
            Self::Lower => collapse(&plain).to_lowercase(),
            Self::Whitespace => collapse(&plain),
            Self::Canonicalize => {
                let spaced = plain.replace('_', " ");
                collapse(
                    &spaced
                        .replace(|c: char| c.is_ascii_punctuation(), "")
                        .to_lowercase(),
                )
            }
        }
    }
}

fn collapse(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Repairs one line until nothing changes, in the order of `ftfy` 6.
fn repair(line: &str) -> String {
    // Text with a `<` may be HTML whose entities are meant, so `ftfy` leaves them.
    let markup = line.contains('<');
    let mut text = line.to_owned();
    for _ in 0..ROUNDS {
        let before = text.clone();

        if !markup {
            text = html::unescape_closed(&text);
        }

        text = text.chars().map(html::windows_1252).flat_map(Spelled::new).collect();
        text = breaks(&text);
        text = without_terminal(&text);

        text.retain(|c| !is_control(c));
        text = nfc(&text);

        // One repair may make way for another, so the steps are repeated until nothing
        // changes.
        if text == before {
            break;
        }
    }
    text
}

/// A character as one or more plainer ones: ligatures opened, full- and half-width forms at
/// their usual width, curly quotes straight.
enum Spelled {
    One(std::option::IntoIter<char>),
    Many(std::str::Chars<'static>),
    Mapped(std::vec::IntoIter<char>),
}

impl Spelled {
    fn new(c: char) -> Self {
        match c {
            '\u{3000}' => Self::One(Some(' ').into_iter()),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => Self::One(Some('\'').into_iter()),
            '\u{201c}'..='\u{201f}' => Self::One(Some('"').into_iter()),
            '\u{ff01}'..='\u{ffef}' => {
                Self::Mapped(nfkc(c).chars().collect::<Vec<_>>().into_iter())
            }
            _ => match ligature(c) {
                Some(letters) => Self::Many(letters.chars()),
                None => Self::One(Some(c).into_iter()),
            },
        }
    }
}

impl Iterator for Spelled {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self {
            Self::One(one) => one.next(),
            Self::Many(many) => many.next(),
            Self::Mapped(mapped) => mapped.next(),
        }
    }
}

fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Every kind of line break as `\n`.
fn breaks(text: &str) -> String {
    text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n")
}

/// Without escape sequences of terminals: `ESC [`, digits and semicolons, a letter.
fn without_terminal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut pieces = text.split("\u{1b}[");
    out.push_str(pieces.next().unwrap_or_default());

    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        if let Some(rest) = rest.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            out.push_str(rest);
        } else {
            out.push_str("\u{1b}[");
            out.push_str(piece);
        }
    }
    out
}

/// Characters that `ftfy` drops: controls, deprecated ones, byte order marks.
fn is_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{8}'
            | '\u{b}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}

fn nfc(text: &str) -> String {
    let mut normal = NormalizedString::from(text);
    normal.nfc();
    normal.get().to_owned()
}

fn nfkc(c: char) -> String {
    let mut normal = NormalizedString::from(c.to_string());
    normal.nfkc();
    normal.get().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(text: &str) -> String {
        Cleaning::Lower.apply(text)
    }

    /// What `open_clip` 3.3 gives: `get_clean_fn(name)(text)`.
    #[test]
    fn every_cleaning_equals_open_clips() {
        let text = " A Dog's  snow_ball, RED-hot (50%)! &lt;B&gt; \u{201c}Q\u{201d} ";
        assert_eq!(
            Cleaning::Lower.apply(text),
            "a dog's snow_ball, red-hot (50%)! <b> \"q\""
        );
        assert_eq!(
            Cleaning::Whitespace.apply(text),
            "A Dog's snow_ball, RED-hot (50%)! <B> \"Q\""
        );
        assert_eq!(Cleaning::Canonicalize.apply(text), "a dogs snow ball redhot 50 b q");
    }

    #[test]
    fn repairs_meet() {
        assert_eq!(clean("\u{1b}[31mRed\u{1b}[0m \u{1b}[x"), "red");
        assert_eq!(clean("\u{1b}[12 ok"), "[12 ok");
        assert_eq!(clean("ĲSBERG \u{201c}Ｑ\u{201d}"), "ijsberg \"q\"");
        assert_eq!(clean("&amp;amp;amp;lt;b&gt;"), "<b>");
        assert_eq!(clean("a\r\nb\u{2029}c\rd"), "a b c d");
    }

    proptest! {
        #[test]
        fn any_text_can_be_cleaned(text in any::<String>()) {
            let cleaned = clean(&text);
            prop_assert!(!cleaned.contains("  "));
            prop_assert_eq!(cleaned.trim(), &cleaned);
        }
    }
}
