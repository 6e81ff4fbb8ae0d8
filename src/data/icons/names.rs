//! From the name of an icon to what it shows and how it is drawn.
//!
//! Icon sets write both into one name: `home-outline`, `baseline-home`, `home-24-filled`,
//! `home-2`. What is a style is read off the set itself. iconify lists the styles of some
//! sets; in the others, a word of style that ends many names is one, so that `light` is a style
//! where a third of all names end with it and a thing where `traffic-light` is the only one.

use std::collections::{BTreeMap, BTreeSet};

use super::super::packages::IconSet;

/// Words that are styles wherever they end a name.
const STYLES: [&str; 8] =
    ["duotone", "filled", "linear", "outline", "outlined", "rounded", "solid", "twotone"];

/// Words that are styles in the sets that use them often.
const USUAL_STYLES: [&str; 27] = [
    "1x1",
    "4x3",
    "alt",
    "background",
    "baseline",
    "block",
    "bold",
    "broken",
    "dark",
    "duo",
    "f",
    "fill",
    "flat",
    "light",
    "line",
    "o",
    "print",
    "regular",
    "remix",
    "round",
    "sharp",
    "stroke",
    "thin",
    "tone",
    "two",
    "wordmark",
    "icon",
];

/// Sides of drawings in pixels, which are styles in the sets that use them often.
const SIDES: [&str; 15] = [
    "10", "12", "14", "15", "16", "18", "20", "24", "28", "32", "36", "48", "64", "96",
    "128",
];

/// A usual style is one where at least this fraction of a set's names end with it.
const SHARE: f64 = 0.02;

/// A usual style is one where at least this many of a set's names end with it.
const LEAST: usize = 3;

/// Numbers that some sets write as words.
const NUMBERS: [&str; 5] = ["one", "two", "three", "four", "five"];

/// A stem with so many numbers counts something, and `dice-3` is no third drawing of dice.
const COUNTING: usize = 4;

/// Things that are counted although many sets also draw them without a number.
const COUNTED: [&str; 8] =
    ["counter", "dice", "filter", "heading", "looks", "number", "numeric", "step"];

/// Abbreviations of a set's own name that begin some of its names.
const OWN_NAMES: [&str; 3] = ["bx", "bxl", "bxs"];

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// What the icon shows, the same for all spellings: its words in alphabetical order.
    pub concept: String,
    /// What the icon shows, in the set's own words.
    pub label: String,
    /// How it is drawn; empty for a set's only style.
    pub style: String,
}

/// Reads the names of one set.
#[derive(Debug)]
pub(super) struct Names {
    styles: BTreeSet<String>,
    prefixes: BTreeSet<String>,
    /// Every name without its style.
    stems: BTreeSet<String>,
    /// The numbers that follow each stem.
    numbers: BTreeMap<String, BTreeSet<String>>,
    /// Whether the set draws flags and does not say so in its names.
    flags: bool,
}

impl Names {
    /// Learns the styles and the numbering of a set from all its names.
    pub(super) fn of(set: &IconSet) -> Self {
        let visible: Vec<&str> = set
            .icons
            .iter()
            .filter(|(_, icon)| !icon.hidden)
            .map(|(name, _)| name.as_str())
            .collect();

        let called = set.info.as_ref().map_or("", |info| info.name.as_str());
        let mut names = Self {
            styles: styles(set, &visible),
            prefixes: set.prefixes.keys().cloned().collect(),
            stems: BTreeSet::new(),
            numbers: BTreeMap::new(),
            flags: called.to_lowercase().contains("flag"),
        };

        // Numbers are judged by the other names of the set, all without their styles.
        for name in visible {
            let (words, _) = names.without_style(name);
            names.stems.insert(words.join("-"));
            if let Some((number, stem)) = words.split_last().filter(|(n, _)| is_number(n))
            {
                let of_stem = names.numbers.entry(stem.join("-")).or_default();
                of_stem.insert((*number).to_owned());
            }
        }
        names
    }

    /// What `name` says; `None` where no word is left.
    pub(super) fn read(&self, name: &str) -> Option<Words> {
        let (mut words, style) = self.without_style(name);

        if let Some((number, stem)) = words.split_last()
            && !stem.is_empty()
            && is_number(number)
            && self.is_variant(number, &stem.join("-"))
        {
            words.pop();
        }

        // A digit without a dash marks a variant only where the set has the name without it:
        // `mp3` and `html5` are words.
        if let Some((last, stem)) = words.split_last() {
            let bare = last.trim_end_matches(|c: char| c.is_ascii_digit());
            let shorter = [stem, &[bare]].concat();
            if bare != *last && self.stems.contains(&shorter.join("-")) {
                words = shorter;
            }
        }

        words.retain(|word| !word.is_empty());
        if words.len() > 1 && OWN_NAMES.contains(&words[0]) {
            words.remove(0);
        }
        if words.is_empty() {
            return None;
        }
        if self.flags && !words.contains(&"flag") {
            words.insert(0, "flag");
        }

        Some(Words {
            concept: concept(&words),
            label: words.join(" "),
            style: style.join(" "),
        })
    }

    /// The words of a name without those of its style, and those of its style that are words.
    fn without_style<'a>(&self, name: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
        let mut words: Vec<&str> = name.split('-').collect();
        let mut style = Vec::new();
        if words.len() > 1 && self.prefixes.contains(words[0]) {
            style.push(words.remove(0));
        }

        let mut after = Vec::new();
        while words.len() > 1 && self.styles.contains(words[words.len() - 1]) {
            after.extend(words.pop());
        }
        style.extend(after.into_iter().rev());

        // The side of a drawing in pixels cannot be seen in it.
        style.retain(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
        (words, style)
    }

    /// Whether a number at the end only tells drawings of one thing apart.
    fn is_variant(&self, number: &str, stem: &str) -> bool {
        let of_stem = self.numbers.get(stem).map_or(0, BTreeSet::len);
        if of_stem >= COUNTING && stem.split('-').any(|word| COUNTED.contains(&word)) {
            return false;
        }
        self.stems.contains(stem) || number.starts_with('0') || of_stem < COUNTING
    }
}

/// The words of style of a set.
fn styles(set: &IconSet, names: &[&str]) -> BTreeSet<String> {
    let mut styles: BTreeSet<String> = STYLES.map(str::to_owned).into();

    // What iconify lists may be several words, such as `16-filled`.
    let listed = set.suffixes.keys().flat_map(|suffix| suffix.split('-'));
    styles.extend(listed.filter(|word| !word.is_empty()).map(str::to_owned));

    let mut endings: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, last) in names.iter().filter_map(|name| name.rsplit_once('-')) {
        *endings.entry(last).or_insert(0) += 1;
    }

    let often =
        |count: usize| count >= LEAST && count as f64 >= SHARE * names.len() as f64;
    let usual = endings.into_iter().filter(|&(word, count)| {
        let side = word.strip_suffix("px").unwrap_or(word);
        often(count) && (USUAL_STYLES.contains(&word) || SIDES.contains(&side))
    });
    styles.extend(usual.map(|(word, _)| word.to_owned()));
    styles
}

fn is_number(word: &str) -> bool {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    digits || NUMBERS.contains(&word)
}

/// One name for `check-circle` and `circle-check`. Where single letters matter, so does their
/// order: `sort-a-z` is not `sort-z-a`.
fn concept(words: &[&str]) -> String {
    let mut words = words.to_vec();
    if words.iter().all(|word| word.len() > 1) {
        words.sort_unstable();
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `name` as one of a set with these other names.
    fn read(name: &str, others: &[&str], more: &str) -> [String; 3] {
        let icon = |name: &&str| format!("\"{name}\": {{\"body\": \"\"}}");
        let icons: Vec<String> = others.iter().chain([&name]).map(icon).collect();
        let json = format!("{{\"icons\": {{{}}}{more}}}", icons.join(", "));
        let set = IconSet::parse(json.as_bytes(), "x").unwrap();
        let Words { concept, label, style } = Names::of(&set).read(name).unwrap();
        [concept, label, style]
    }

    #[test]
    fn styles_are_those_that_a_set_lists_or_uses_often() {
        let listed = r#", "suffixes": {"": "Regular", "16-bold": "Bold at 16"},
                          "prefixes": {"round": "Round"}"#;
        assert_eq!(
            read("round-home-16-bold", &[], listed),
            ["home", "home", "round bold"]
        );
        assert_eq!(read("home-outline", &[], ""), ["home", "home", "outline"]);

        assert_eq!(read("bx-home", &[], "")[1], "home");
        assert_eq!(read("traffic-light", &["a", "b"], "")[1], "traffic light");
        assert_eq!(read("moon-light", &["a-light", "b-light"], "")[1], "moon");
        assert_eq!(
            read("outline", &[], ""),
            ["outline", "outline", ""],
            "a word is left"
        );
    }

    #[test]
    fn numbers_of_variants_go_and_numbers_that_count_stay() {
        assert_eq!(read("home-2", &[], "")[1], "home");
        assert_eq!(read("add-one", &[], "")[1], "add");
        assert_eq!(read("home-05", &["home-01", "home-02", "home-03"], "")[1], "home");
        let dice = ["dice-1", "dice-2", "dice-4"];
        assert_eq!(read("dice-3", &dice, "")[1], "dice 3");
        assert_eq!(read("dice-3", &[&dice[..], &["dice"]].concat(), "")[1], "dice 3");
        let homes = ["home-1", "home-2", "home-4"];
        assert_eq!(read("home-3", &homes, "")[1], "home 3", "nothing tells it from dice");
        assert_eq!(read("home-3", &[&homes[..], &["home"]].concat(), "")[1], "home");
        assert_eq!(read("search2-outline", &["search"], "")[1], "search");
        assert_eq!(read("mp3", &["search"], "")[1], "mp3");
    }

    #[test]
    fn the_order_of_words_does_not_make_a_concept_but_that_of_letters_does() {
        assert_eq!(read("check-circle", &[], "")[0], read("circle-check", &[], "")[0]);
        assert_ne!(read("sort-a-z", &[], "")[0], read("sort-z-a", &[], "")[0]);
    }

    #[test]
    fn flags_are_called_flags() {
        let info = r#", "info": {"name": "Circle Flags", "author": {"name": "x"},
                       "license": {"title": "MIT"}}"#;
        assert_eq!(read("ee", &[], info)[1], "flag ee");
        assert_eq!(read("flag-ee", &[], info)[1], "flag ee");
    }
}
