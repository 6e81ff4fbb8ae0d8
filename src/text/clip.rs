//! CLIP's own tokenizer: byte-level BPE with end-of-word marks over cleaned captions.
//!
//! Ids: the 256 bytes, the 256 bytes that end a word, the merges, start of text V-2, end of
//! text V-1. Read from what people have: `tokenizer.json`, `vocab.json` with `merges.txt`,
//! or `open_clip`'s file of merges, plain or gzipped. Whatever the file, captions are cleaned
//! and cut as `open_clip` does, because that is what the published weights were trained on.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
    SplitDelimiterBehavior,
};

use super::clean::Cleaning;
use crate::error::{Context, Error, Result};
use crate::num;

/// Ends the last symbol of a word.
const SUFFIX: &str = "</w>";
/// Merges of the full vocabulary; `open_clip`'s file has more lines, which are not used.
const MERGES: usize = 49_152 - 256 - 2;
/// Largest file of merges or vocabulary, unpacked.
const MAX_BYTES: u64 = 64 << 20;
/// The marks, as `open_clip` and as Hugging Face spell them.
const MARKS: [[&str; 2]; 2] =
    [["<start_of_text>", "<end_of_text>"], ["<|startoftext|>", "<|endoftext|>"]];
/// Words: `open_clip`'s marks, English endings, letters, one digit, or anything else.
const WORDS: &str = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";

/// A vocabulary of CLIP's kind.
#[derive(Debug, Clone)]
pub(super) struct Clip {
    bpe: BPE,
    words: Split,
    alphabet: [char; 256],
    vocabulary: usize,
    cleaning: Cleaning,
}

impl Clip {
    /// Whether a `tokenizer.json` is of this kind.
    pub(super) fn is(json: &Value) -> bool {
        json["model"]["end_of_word_suffix"] == SUFFIX
    }

    /// Reads a `tokenizer.json`.
    pub(super) fn from_json(json: &Value) -> Result<Self> {
        let clip = Self::new(&json["model"]["vocab"], &json["model"]["merges"])?;
        let others = [Cleaning::Whitespace, Cleaning::Canonicalize];
        let stated =
            others.into_iter().find(|other| json["normalizer"] == normalizer(*other));
        Ok(clip.with_cleaning(stated.unwrap_or_default()))
    }

    /// The same vocabulary for captions that are cleaned in another way.
    pub(super) fn with_cleaning(self, cleaning: Cleaning) -> Self {
        Self { cleaning, ..self }
    }

    /// Reads `vocab.json`; `merges.txt` lies beside it.
    pub(super) fn from_vocab(path: &Path) -> Result<Self> {
        let vocab: Value = serde_json::from_slice(&read(path)?).map_err(|e| {
            Error::corrupt("not a JSON object of ids by token").caused_by(e)
        })?;
        let merges = read_merges(&path.with_file_name("merges.txt"))?;
        Self::new(&vocab, &json!(merges))
    }

    /// Reads a file of merges: a header, then one pair per line, the most frequent first.
    pub(super) fn from_merges(path: &Path) -> Result<Self> {
        let merges = read_merges(path)?;

        // The file has no ids: they follow from the order that all such vocabularies
        // share.
        let alphabet: Vec<String> =
            ordered_alphabet().iter().map(|(_, c)| c.to_string()).collect();
        let mut tokens = alphabet.clone();
        tokens.extend(alphabet.iter().map(|c| format!("{c}{SUFFIX}")));
        tokens.extend(merges.iter().map(|[left, right]| format!("{left}{right}")));
        tokens.extend(MARKS[0].map(str::to_owned));

        let vocab: Map<String, Value> = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| (token, json!(id)))
            .collect();
        Self::new(&Value::Object(vocab), &json!(merges))
    }

    fn new(vocab: &Value, merges: &Value) -> Result<Self> {
        let ids: BTreeMap<String, usize> = serde_json::from_value(vocab.clone())
            .map_err(|e| {
                Error::corrupt("the vocabulary is no list of ids").caused_by(e)
            })?;

        let vocabulary = ids.len();

        // Ids index the rows of an embedding, so they must be 0..V, each once.
        let mut seen = vec![false; vocabulary];
        for (token, &id) in &ids {
            match seen.get_mut(id).filter(|seen| !**seen) {
                Some(slot) => *slot = true,
                None => {
                    return Err(Error::corrupt(format!(
                        "token {token:?} has id {id}, which is taken or not below {vocabulary}"
                    )));
                }
            }
        }

        let marked = MARKS.iter().any(|[start, end]| {
            let at = |mark: &str| ids.get(mark).copied();
            at(end) == vocabulary.checked_sub(1) && at(start) == vocabulary.checked_sub(2)
        });
        if !marked {
            return Err(Error::corrupt(format!(
                "expected start and end of text as the last of {vocabulary} entries"
            )));
        }

        let model = json!({"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": "", "end_of_word_suffix": SUFFIX,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges});
        // The type reads borrowed text only.
        let bpe = serde_json::from_str(&model.to_string()).map_err(|e| {
            Error::corrupt("vocabulary and merges do not fit").caused_by(e)
        })?;

        let pattern = SplitPattern::Regex(WORDS.to_owned());
        let words = Split::new(pattern, SplitDelimiterBehavior::Removed, true)
            .map_err(|e| Error::failed("compiling the pattern of words").caused_by(e))?;

        // Captions may hold any byte, so every byte needs an entry, also as the end of a
        // word.
        let mut alphabet = ['\0'; 256];
        for (byte, c) in ordered_alphabet() {
            alphabet[usize::from(byte)] = c;
            let token = c.to_string();
            if !ids.contains_key(&token) || !ids.contains_key(&(token + SUFFIX)) {
                return Err(Error::corrupt(format!("byte {byte} has no entry")));
            }
        }
        Ok(Self { bpe, words, alphabet, vocabulary, cleaning: Cleaning::default() })
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The token of an id, as the vocabulary spells it.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.bpe.id_to_token(id)
    }

    /// The ids of a caption, without marks.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let cleaned = self.cleaning.apply(text);
        let failed =
            |e| Error::failed(format!("encoding the text {text:?}")).caused_by(e);

        let mut pieces = PreTokenizedString::from(cleaned.as_str());
        self.words.pre_tokenize(&mut pieces).map_err(failed)?;

        let mut ids = Vec::new();
        for (word, _, _) in
            pieces.get_splits(OffsetReferential::Original, OffsetType::Byte)
        {
            // A caption that spells out a mark holds that mark, as in open_clip.
            if let Some(mark) = MARKS[0].iter().position(|mark| *mark == word) {
                ids.push(num::index_u32(self.vocabulary - 2 + mark));
                continue;
            }

            let symbols: String =
                word.bytes().map(|byte| self.alphabet[usize::from(byte)]).collect();
            let tokens = self.bpe.tokenize(&symbols).map_err(failed)?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(ids)
    }

    /// The vocabulary as a `tokenizer.json` that Hugging Face's library reads.
    pub(super) fn document(&self) -> Result<String> {
        let model = serde_json::to_value(&self.bpe)
            .context(|| "storing the tokenizer".to_owned())?;

        // The marks are written as the vocabulary that was read spells them.
        let spelled = |marks: &[&str; 2]| self.bpe.token_to_id(marks[0]).is_some();
        let [start, end] =
            MARKS.iter().find(|marks| spelled(marks)).copied().unwrap_or(MARKS[0]);
        let mark = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };

        let (first, last) = (self.vocabulary - 2, self.vocabulary - 1);
        let document = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [mark(first, start), mark(last, end)],
            "normalizer": normalizer(self.cleaning),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                 "use_regex": false},
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [end, last],
                "cls": [start, first], "trim_offsets": false, "add_prefix_space": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                        "use_regex": true},
            "model": model,
        });

        let text = serde_json::to_string(&document);
        Ok(text.context(|| "storing the tokenizer".to_owned())? + "\n")
    }
}

/// The nearest that Hugging Face's library has to a cleaning; it also tells which it is when
/// a `tokenizer.json` is read back.
fn normalizer(cleaning: Cleaning) -> Value {
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content});
    let (nfc, spaces) = (json!({"type": "NFC"}), replace("\\s+", " "));
    let lower = json!({"type": "Lowercase"});
    let steps = match cleaning {
        Cleaning::Lower => vec![nfc, spaces, lower],
        Cleaning::Whitespace => vec![nfc, spaces],
        Cleaning::Canonicalize => {
            let punctuation = "[!-/:-@\\[-`{-~]";
            vec![nfc, replace("_", " "), replace(punctuation, ""), spaces, lower]
        }
    };
    json!({"type": "Sequence", "normalizers": steps})
}

/// The text that a token of a byte-level vocabulary spells; the end of a word is a blank.
pub(super) fn readable(token: &str) -> String {
    let (spelled, end) = match token.strip_suffix(SUFFIX) {
        Some(spelled) => (spelled, " "),
        None => (token, ""),
    };
    let alphabet = ordered_alphabet();
    let byte = |c: char| alphabet.iter().find(|(_, named)| *named == c).map(|(b, _)| *b);
    let bytes: Vec<u8> = spelled.chars().filter_map(byte).collect();
    String::from_utf8_lossy(&bytes).into_owned() + end
}

/// Bytes and the printable characters that stand for them, in the order of their ids.
fn ordered_alphabet() -> Vec<(u8, char)> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|b| !printable(b));
    let named = others.zip('\u{100}'..).collect::<Vec<_>>();
    (0..=u8::MAX).filter(printable).map(|b| (b, char::from(b))).chain(named).collect()
}

/// A file's bytes, unpacked if they are gzipped, of a limited size.
fn read(path: &Path) -> Result<Vec<u8>> {
    let place = path.display();
    let file = std::fs::File::open(path).context(|| format!("reading {place}"))?;
    let mut bytes = Vec::new();

    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let read = if packed {
        flate2::read::GzDecoder::new(file).take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)
    };

    read.context(|| format!("reading {place}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::corrupt(format!("{place} is larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

fn read_merges(path: &Path) -> Result<Vec<[String; 2]>> {
    let place = path.display();
    let text = String::from_utf8(read(path)?)
        .map_err(|e| Error::corrupt(format!("{place} is not text")).caused_by(e))?;

    // The first line is a header; what follows the last merge of the vocabulary is not
    // used.
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty());
    lines
        .take(MERGES)
        .map(|(number, line)| {
            let parts: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            <[String; 2]>::try_from(parts).map_err(|parts| {
                let number = number + 1;
                let found = parts.len();
                Error::corrupt(format!(
                    "{place} line {number}: {line:?} is {found} symbols, expected a pair"
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;
    use crate::text::Tokenizer;

    #[derive(Deserialize)]
    struct Golden {
        vocab_size: usize,
        context: usize,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        #[serde(default)]
        group: String,
        text: String,
        #[serde(default)]
        clean: Option<String>,
        ids: Vec<u32>,
        #[serde(default)]
        untruncated: Option<usize>,
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
    }

    fn cases(name: &str) -> Golden {
        serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
    }

    fn padded(ids: &[u32], context: usize) -> Vec<u32> {
        let zeros = std::iter::repeat_n(0, context - ids.len());
        ids.iter().copied().chain(zeros).collect()
    }

    /// Ids of `open_clip`, all but those where a wrong encoding would have to be undone.
    #[test]
    fn ids_equal_open_clips() {
        let cases = cases("cases.json");
        let clip = Tokenizer::open(&fixture("bpe_simple_vocab_16e6.txt.gz")).unwrap();
        assert_eq!(clip.vocabulary(), cases.vocab_size);
        let mut compared = 0;
        for case in &cases.cases {
            let ids = clip.encode(&case.text, cases.context).unwrap();
            let same = ids == padded(&case.ids, cases.context);
            if case.group == "mojibake" {
                assert!(!same, "{:?} is no known difference any more", case.text);
                continue;
            }
            let cleaned = Cleaning::Lower.apply(&case.text);
            assert_eq!(Some(&cleaned), case.clean.as_ref(), "{:?}", case.text);
            assert!(same, "{:?}: {ids:?}", case.text);
            let length = clip.words(&case.text).unwrap().len() + 2;
            assert_eq!(Some(length), case.untruncated, "{:?}", case.text);
            compared += 1;
        }
        assert_eq!(compared, 90);
    }

    #[test]
    fn a_vocabulary_of_your_own_works_as_open_clips_does() {
        let cases = cases("toy_cases.json");
        let clip = Tokenizer::open(&fixture("toy_bpe.txt.gz")).unwrap();
        assert_eq!(clip.vocabulary(), cases.vocab_size);
        for case in &cases.cases {
            let ids = clip.encode(&case.text, cases.context).unwrap();
            assert_eq!(ids, padded(&case.ids, cases.context), "{:?}", case.text);
        }
    }

    /// The cleaning is kept in `tokenizer.json`, and so in every key that a file enters.
    #[test]
    fn a_cleaning_is_stored_with_the_vocabulary() {
        let lower = Tokenizer::open(&fixture("toy_bpe.txt.gz")).unwrap();
        let text = "A Red_Dog, don't!";
        let mut seen = vec![lower.words(text).unwrap()];
        for cleaning in [Cleaning::Whitespace, Cleaning::Canonicalize] {
            let other = lower.clone().with_cleaning(cleaning).unwrap();
            let ids = other.words(text).unwrap();
            assert!(!seen.contains(&ids), "{cleaning:?}");
            let stored = Tokenizer::parse(other.json().unwrap().as_bytes()).unwrap();
            assert_eq!(stored.words(text).unwrap(), ids, "{cleaning:?}");
            assert_eq!(stored.json().unwrap(), other.json().unwrap());
            seen.push(ids);
        }
        let plain = lower.words("a red dog dont").unwrap();
        assert_eq!(seen[2], plain);
    }

    /// `tokenizer.json` as we write it, and Hugging Face's two files, are the same.
    #[test]
    fn every_form_of_a_vocabulary_gives_the_same_ids() {
        let clip = Tokenizer::open(&fixture("toy_bpe.txt.gz")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let json = clip.json().unwrap();
        let stored = Tokenizer::parse(json.as_bytes()).unwrap();
        let value: Value = serde_json::from_str(&json).unwrap();
        let vocab = folder.path().join("vocab.json");
        let renamed = value["model"]["vocab"].to_string();
        let renamed =
            renamed.replace(MARKS[0][0], MARKS[1][0]).replace(MARKS[0][1], MARKS[1][1]);
        std::fs::write(&vocab, renamed).unwrap();
        let merges = read_merges(&fixture("toy_bpe.txt.gz")).unwrap();
        let lines: Vec<String> = merges.iter().map(|pair| pair.join(" ")).collect();
        let text = format!("#version: 0.2\n{}\n", lines.join("\n"));
        std::fs::write(folder.path().join("merges.txt"), text).unwrap();
        let two = Tokenizer::open(folder.path()).unwrap();
        for case in &cases("toy_cases.json").cases {
            let ids = clip.encode(&case.text, 24).unwrap();
            assert_eq!(stored.encode(&case.text, 24).unwrap(), ids);
            assert_eq!(two.encode(&case.text, 24).unwrap(), ids);
        }
        let merges = Tokenizer::open(&folder.path().join("merges.txt")).unwrap();
        assert_eq!(merges.words("a red dog").unwrap(), clip.words("a red dog").unwrap());
    }

    #[test]
    fn damaged_vocabularies_are_refused_in_a_sentence() {
        let clip = Tokenizer::open(&fixture("toy_bpe.txt.gz")).unwrap();
        let json: Value = serde_json::from_str(&clip.json().unwrap()).unwrap();
        let refuse = |change: fn(&mut Value), word: &str| {
            let mut json = json.clone();
            change(&mut json);
            let error = Tokenizer::parse(json.to_string().as_bytes()).unwrap_err();
            assert!(format!("{error:?}").contains(word), "{error:?}");
        };
        refuse(|j| j["model"]["vocab"]["th"] = json!(3), "has id 3");
        refuse(|j| j["model"]["vocab"]["th"] = json!(-3), "no list of ids");
        refuse(|j| j["model"]["merges"] = json!([["zz", "qq"]]), "do not fit");
        refuse(|j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("!")), "id");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("merges.txt");
        std::fs::write(&path, "#version\na b\nc d e\n").unwrap();
        let error = format!("{:?}", Tokenizer::open(&path).unwrap_err());
        assert!(error.contains("line 3") && error.contains("merges.txt"), "{error}");
        std::fs::write(folder.path().join("x.txt.gz"), "no gzip").unwrap();
        assert!(Tokenizer::open(&folder.path().join("x.txt.gz")).is_err());
    }
}
