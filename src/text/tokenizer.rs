//! The tokenizer: a CLIP's own, or byte-level BPE trained on the captions, stored as a
//! Hugging Face `tokenizer.json`.
//!
//! Ids: the 256 bytes and the merges first, start of text V-2, end of text V-1, padding 0.
//! The end has the largest id, so that a text tower pools at the first maximum; 0 is an
//! ordinary token and padding can only be told by its place after the end.
//!
//! Words are counted and handed to the trainer here, and no end-of-word mark is used: with
//! both left to the crate, token numbers would follow the order of a hash map.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::clean::Cleaning;
use super::clip::Clip;
use crate::error::{Context, Error, Result};
use crate::num;
use crate::par;

/// Mark at the start of every text.
const START: &str = "<start_of_text>";
/// Mark at the end of every text.
const END: &str = "<end_of_text>";
/// Entries that no vocabulary can do without: the bytes and the two marks.
const SMALLEST: usize = 256 + 2;

/// Trains a vocabulary of at most `vocabulary` entries on texts; returns `tokenizer.json`.
///
/// Fewer entries come out where the texts have no pair of symbols twice. The result does not
/// depend on the order of the texts.
pub fn train(texts: &[String], vocabulary: usize) -> Result<String> {
    if vocabulary < SMALLEST {
        return Err(Error::usage(format!(
            "a byte-level vocabulary has at least {SMALLEST} entries, {vocabulary} asked for"
        )));
    }

    let mut words: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        for word in split(&normalise(text))? {
            *words.entry(word).or_default() += 1;
        }
    }

    // The two marks are no part of the model; they get the last two ids afterwards.
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary - 2)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();

    let words = words.into_iter().map(|(word, n)| (word.into(), n)).collect();
    let mut model = BPE::default();
    trainer
        .do_train(&words, &mut model)
        .map_err(|e| Error::failed("training the tokenizer").caused_by(e))?;

    let model =
        serde_json::to_value(&model).context(|| "storing the tokenizer".to_owned())?;
    let entries = model["vocab"].as_object().map_or(0, serde_json::Map::len);

    let text = serde_json::to_string_pretty(&document(&model, entries))
        .context(|| "storing the tokenizer".to_owned())?;
    Ok(text + "\n")
}

/// Lower case, runs of white space as one space, none at the ends.
fn normalise(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words of a normalised text in the byte alphabet.
fn split(text: &str) -> Result<Vec<String>> {
    let failed = |e| Error::failed(format!("splitting the text {text:?}")).caused_by(e);
    let mut pieces = PreTokenizedString::from(text);
    ByteLevel::default().pre_tokenize(&mut pieces).map_err(failed)?;
    let words = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(words.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

/// The whole file around a model of `entries` ordinary tokens.
fn document(model: &Value, entries: usize) -> Value {
    let mark = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let special = |id: usize, content: &str| json!({"id": content, "ids": [id], "tokens": [content]});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [mark(entries, START), mark(entries + 1, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            {"type": "Strip", "strip_left": true, "strip_right": true},
        ]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true,
                          "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": START, "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": END, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {START: special(entries, START),
                               END: special(entries + 1, END)},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true,
                    "trim_offsets": true, "use_regex": true},
        "model": model,
    })
}

/// Files of a vocabulary in a folder, in order of preference.
pub const FILES: [&str; 4] =
    ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz", "merges.txt"];

/// Turns texts into token ids.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    kind: Kind,
    vocabulary: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    /// Trained here: lower case, white space, nothing else.
    Own(Box<tokenizers::Tokenizer>),
    /// CLIP's.
    Clip(Box<Clip>),
}

impl Tokenizer {
    /// Opens a vocabulary: a `tokenizer.json` of ours or of a CLIP, a CLIP's `vocab.json` with
    /// `merges.txt` beside it, a file of merges as `open_clip`'s, or a folder with one of them.
    pub fn open(path: &Path) -> Result<Self> {
        let path = &in_folder(path)?;
        let place = path.display();
        let reading = || format!("reading tokenizer {place}");

        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".txt") || name.ends_with(".txt.gz") {
            return Clip::from_merges(path).map(Self::of_clip).context(reading);
        }
        if name.ends_with("vocab.json") {
            return Clip::from_vocab(path).map(Self::of_clip).context(reading);
        }

        let text = std::fs::read(path).context(reading)?;
        Self::parse(&text).context(reading)
    }

    /// Like [`Tokenizer::open`], from the content of a `tokenizer.json`.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|e| Error::corrupt("not a tokenizers file").caused_by(e))?;
        if Clip::is(&value) {
            return Clip::from_json(&value).map(Self::of_clip);
        }

        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| Error::corrupt("not a tokenizers file").caused_by(e))?;

        // The file may ask to cut or pad texts, which `encode` does by the context of the
        // model.
        inner
            .with_truncation(None)
            .map_err(|e| Error::failed("removing the truncation").caused_by(e))?;
        inner.with_padding(None);

        // A caption that spells out a mark must not end the text in its middle.
        inner.set_encode_special_tokens(true);

        let ids = inner.get_vocab(true);
        let vocabulary = ids.len();

        // An id beyond the end would be read outside of the embedding.
        let last = ids.iter().max_by_key(|(token, id)| (**id, *token));
        if let Some((token, id)) = last.filter(|(_, id)| num::widen(**id) >= vocabulary) {
            return Err(Error::corrupt(format!(
                "token {token:?} has id {id}, but there are {vocabulary} tokens"
            )));
        }

        let missing = |symbol: &char| !ids.contains_key(&symbol.to_string());
        if let Some(symbol) = ByteLevel::alphabet().into_iter().filter(missing).min() {
            return Err(Error::corrupt(format!(
                "the vocabulary lacks {symbol:?}, one of the 256 bytes"
            )));
        }

        // The text tower finds the end of a text by its largest id.
        for (mark, from_end) in [(START, 2), (END, 1)] {
            let found = inner.token_to_id(mark).map(num::widen);
            if found.is_none() || found != vocabulary.checked_sub(from_end) {
                return Err(Error::corrupt(format!(
                    "expected {mark} as entry {from_end} from the end of {vocabulary}, \
                     found {found:?}"
                )));
            }
        }
        Ok(Self { kind: Kind::Own(Box::new(inner)), vocabulary })
    }

    /// The same vocabulary for captions that are cleaned in another way, as `open_clip`'s
    /// `tokenizer_kwargs` ask for.
    pub fn with_cleaning(self, cleaning: Cleaning) -> Result<Self> {
        match self.kind {
            Kind::Clip(clip) => Ok(Self::of_clip(clip.with_cleaning(cleaning))),
            Kind::Own(_) => Err(Error::usage(format!(
                "the tokenizer is not CLIP's, so the cleaning {cleaning:?} cannot be applied"
            ))),
        }
    }

    fn of_clip(clip: Clip) -> Self {
        Self { vocabulary: clip.vocabulary(), kind: Kind::Clip(Box::new(clip)) }
    }

    /// The vocabulary as the text of a `tokenizer.json`, which [`Tokenizer::parse`] and
    /// Hugging Face's library read.
    pub fn json(&self) -> Result<String> {
        match &self.kind {
            Kind::Clip(clip) => clip.document(),
            Kind::Own(inner) => inner
                .to_string(true)
                .map(|text| text + "\n")
                .map_err(|e| Error::failed("storing the tokenizer").caused_by(e)),
        }
    }

    /// Number V of entries, the two marks included.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Id V-2 of the start mark.
    pub fn start(&self) -> u32 {
        num::index_u32(self.vocabulary - 2)
    }

    /// Id V-1 of the end mark.
    pub fn end(&self) -> u32 {
        num::index_u32(self.vocabulary - 1)
    }

    /// Exactly `context` ids: start, tokens, end, zeros. A long text loses its tail, never
    /// its end mark.
    ///
    /// # Panics
    /// If `context` is below 2: there is no room for the marks.
    pub fn encode(&self, text: &str, context: usize) -> Result<Vec<u32>> {
        assert!(context >= 2, "a context of {context} has no room for start and end");

        let kept = self.words(text)?.into_iter().take(context - 2);
        let mut ids: Vec<u32> = std::iter::once(self.start()).chain(kept).collect();

        ids.push(self.end());
        ids.resize(context, 0);
        Ok(ids)
    }

    /// The ids of a text alone, without marks, limit or padding.
    pub fn words(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Clip(clip) => clip.encode(text),
            Kind::Own(inner) => {
                let encoding = inner.encode_fast(text, false).map_err(|e| {
                    Error::failed(format!("encoding the text {text:?}")).caused_by(e)
                })?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// What a token stands for, for people to read; a token that ends a word ends in a blank,
    /// or begins with one, as its vocabulary has it. Bytes that are no text on their own are
    /// shown as the replacement character.
    pub fn piece(&self, id: u32) -> String {
        let token = match &self.kind {
            Kind::Clip(clip) => clip.token(id),
            Kind::Own(inner) => inner.id_to_token(id),
        };
        let marks = [self.start(), self.end()];
        match token {
            Some(token) if marks.contains(&id) => token,
            Some(token) => super::clip::readable(&token),
            None => String::new(),
        }
    }

    /// [`Tokenizer::encode`] of every text in parallel, one after the other [n, context].
    pub fn encode_all<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        context: usize,
    ) -> Result<Vec<u32>> {
        let rows =
            par::try_map(texts.len(), |i| self.encode(texts[i].as_ref(), context))?;
        Ok(rows.concat())
    }
}

/// The file that a folder means, in order of preference; a file means itself.
fn in_folder(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = FILES.iter().map(|file| path.join(file)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let (place, files) = (path.display(), FILES.join(", "));
        Error::failed(format!("{place} holds no tokenizer: expected one of {files}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        let words =
            ["red circle", "blue  Square", "a picture of a red square", "Étoile ✨"];
        words.iter().cycle().take(40).map(|&t| t.to_owned()).collect()
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::parse(train(&texts(), 300).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn the_pieces_of_a_text_put_together_are_the_text() {
        let toy = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/tokenizer/toy_bpe.txt.gz");
        for tokenizer in [tokenizer(), Tokenizer::open(&toy).unwrap()] {
            let ids = tokenizer.words("a red circle").unwrap();
            let pieces: String = ids.iter().map(|&id| tokenizer.piece(id)).collect();
            assert_eq!(pieces.trim(), "a red circle");
            assert!(!tokenizer.piece(tokenizer.end()).is_empty());
            assert_eq!(tokenizer.piece(u32::MAX), "");
        }
    }

    #[test]
    fn training_is_deterministic_and_ignores_the_order_of_texts() {
        let first = train(&texts(), 300).unwrap();
        let mut reversed = texts();
        reversed.reverse();
        for _ in 0..5 {
            assert!(train(&texts(), 300).unwrap() == first);
            assert!(train(&reversed, 300).unwrap() == first);
        }
    }

    #[test]
    fn marks_are_the_last_two_entries_and_padding_is_zero() {
        let tokenizer = tokenizer();
        let v = num::index_u32(tokenizer.vocabulary());
        assert!(v <= 300 && v > 258);
        let ids = tokenizer.encode("red circle", 8).unwrap();
        assert_eq!(ids.len(), 8);
        assert_eq!(ids[0], v - 2);
        let end = ids.iter().position(|&id| id == v - 1).unwrap();
        assert!(end < 7 && ids[end + 1..].iter().all(|&id| id == 0));
        assert!(ids[1..end].iter().all(|&id| id < v - 2));
    }

    #[test]
    fn case_and_white_space_do_not_matter() {
        let tokenizer = tokenizer();
        let plain = tokenizer.encode("red circle", 12).unwrap();
        assert_eq!(tokenizer.encode("  RED\t\n Circle ", 12).unwrap(), plain);
    }

    #[test]
    fn a_long_text_keeps_its_end_mark() {
        let tokenizer = tokenizer();
        for context in 2..10 {
            let ids = tokenizer.encode("zebra quickly jumps over", context).unwrap();
            assert_eq!(ids.len(), context);
            assert_eq!(*ids.last().unwrap(), tokenizer.end());
        }
    }

    #[test]
    fn a_caption_cannot_spell_a_mark() {
        let tokenizer = tokenizer();
        let ids =
            tokenizer.encode("red <end_of_text> <start_of_text> circle", 64).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == tokenizer.end()).count(), 1);
        assert_eq!(ids.iter().filter(|&&id| id == tokenizer.start()).count(), 1);
    }

    #[test]
    fn any_bytes_can_be_encoded_and_told_apart() {
        let tokenizer = tokenizer();
        let strange = ["", "日本語", "👩‍🚀", "\u{0}", "ß"];
        let ids: Vec<_> =
            strange.iter().map(|t| tokenizer.encode(t, 40).unwrap()).collect();
        for (i, a) in ids.iter().enumerate() {
            assert!(ids[i + 1..].iter().all(|b| a != b), "{:?}", strange[i]);
        }
        assert_eq!(tokenizer.encode_all(&strange, 40).unwrap(), ids.concat());
    }

    #[test]
    fn files_that_are_no_tokenizer_are_refused() {
        for bad in ["", "{}", "[1]", r#"{"model": {"type": "BPE"}}"#] {
            assert!(Tokenizer::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let json = train(&texts(), 300).unwrap().replace("<end_of_text>", "<eot>");
        let error = Tokenizer::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("<end_of_text>"), "{error}");
        assert!(train(&texts(), 100).unwrap_err().to_string().contains("258"));
    }
}
