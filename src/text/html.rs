//! HTML entities to characters, by the rules of Python's `html.unescape`.
//!
//! CLIP's captions were cleaned with it, so its corners count: names without a semicolon by
//! the longest known prefix (`&notit;` is `¬it;`), numbers of the Windows-1252 range as what
//! was meant, forbidden code points as nothing.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Most characters of a name that is looked at.
const LONGEST: usize = 32;

/// Names without `&`, with or without their semicolon.
static NAMES: LazyLock<BTreeMap<&str, &str>> = LazyLock::new(|| {
    entities::ENTITIES.iter().map(|e| (&e.entity[1..], e.characters)).collect()
});

/// Replaces every entity once; the result may hold new ones.
pub(super) fn unescape(text: &str) -> String {
    replace(text, |rest| {
        if rest.starts_with('#') {
            return number(rest);
        }

        let end = rest.char_indices().take_while(|(_, c)| !"\t\n\x0c <&#;".contains(*c));
        let end = end.take(LONGEST).last().map_or(0, |(at, c)| at + c.len_utf8());
        let semicolon = usize::from(rest[end..].starts_with(';'));

        let name = &rest[..end + semicolon];
        if let Some(found) = NAMES.get(name) {
            return Some(((*found).to_owned(), name.len()));
        }

        // HTML allows old names without a semicolon: the longest known beginning counts.
        let cuts = name.char_indices().map(|(at, _)| at).rev();
        cuts.filter(|at| *at >= 2)
            .find_map(|at| NAMES.get(&name[..at]).map(|found| ((*found).to_owned(), at)))
    })
}

/// Replaces entities that end in a semicolon, upper-case spellings of lower-case names
/// included: what `ftfy` does with text that holds no `<`.
pub(super) fn unescape_closed(text: &str) -> String {
    replace(text, |rest| {
        let end = rest.find(';').filter(|end| (1..=25).contains(end))?;
        let (name, body) = (&rest[..=end], rest[..end].trim_start_matches('#'));
        if body.is_empty() || !body.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }

        if name.starts_with('#') {
            return number(name).filter(|(_, used)| *used == name.len());
        }

        if let Some(found) = NAMES.get(name) {
            return Some(((*found).to_owned(), name.len()));
        }

        let lower = name.to_lowercase();
        let upper = name == name.to_uppercase();
        let found = NAMES.get(lower.as_str()).filter(|_| upper)?;
        Some((found.to_uppercase(), name.len()))
    })
}

/// Hands what follows each `&` to `decode`, which returns a replacement and the bytes used.
fn replace(text: &str, decode: impl Fn(&str) -> Option<(String, usize)>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match decode(rest) {
            Some((characters, used)) => {
                out.push_str(&characters);
                rest = &rest[used..];
            }
            None => out.push('&'),
        }
    }
    out + rest
}

/// `#65;`, `#x41` and the like; `None` if no digit follows.
fn number(rest: &str) -> Option<(String, usize)> {
    let digits = rest.strip_prefix('#')?;

    let hex = digits
        .strip_prefix(['x', 'X'])
        .filter(|hex| hex.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (digits, radix) = hex.map_or((digits, 10), |hex| (hex, 16));

    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    // What does not fit is beyond the last code point.
    let value = u32::from_str_radix(&digits[..end], radix).unwrap_or(u32::MAX);
    let semicolon = usize::from(digits[end..].starts_with(';'));
    let used = rest.len() - digits.len() + end + semicolon;
    Some((character(value), used))
}

fn character(value: u32) -> String {
    match value {
        0 => "\u{fffd}".to_owned(),
        0x0d => "\r".to_owned(),
        0x80..=0x9f => char::from_u32(value).map(windows_1252).into_iter().collect(),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        0x00..=0x10_ffff if value & 0xfffe == 0xfffe => String::new(),
        _ => char::from_u32(value).unwrap_or('\u{fffd}').to_string(),
    }
}

/// The character that a byte 0x80 to 0x9F, read as Latin-1, was meant to be.
pub(super) fn windows_1252(c: char) -> char {
    const MEANT: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}',
        'Ž', '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›',
        'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match u32::from(c) {
        code @ 0x80..=0x9f => MEANT[crate::num::widen(code - 0x80)],
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked against Python 3.11's `html.unescape`.
    #[test]
    fn entities_follow_pythons_rules() {
        for (text, expected) in [
            ("fish &amp; chips", "fish & chips"),
            ("&amp;amp;", "&amp;"),
            ("AT&T &copy 2020", "AT&T © 2020"),
            ("&notanentity; &", "¬anentity; &"),
            ("&notit;&notin;", "¬it;∉"),
            ("&#65;&#x41;&#X41 &#65", "AAA A"),
            ("&#128;&#x99;", "€™"),
            ("&#0;&#xD800;&#x110000;", "\u{fffd}\u{fffd}\u{fffd}"),
            ("a&#1;b&#xFFFE;c", "abc"),
            ("&#;&#x;&#xg;&;&", "&#;&#x;&#xg;&;&"),
            ("&ampé &lté", "&é <é"),
            ("&#99999999999999999999;", "\u{fffd}"),
            ("&NotEqualTilde;", "≂̸"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn closed_entities_need_their_semicolon() {
        assert_eq!(unescape_closed("&amp; &EACUTE; &copy 1"), "& É &copy 1");
        assert_eq!(unescape_closed("&#65;&#x41; &#; &x"), "AA &#; &x");
    }
}
