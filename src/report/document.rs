//! The report as data: sections of tables, figures and notes. HTML and Markdown are two
//! templates over the same tree, so they cannot disagree.
//!
//! Texts are plain, with `` `code` `` as the only markup; the templates escape them.

use serde::Serialize;

use super::stats::{Difference, Sign};
use super::words::signed;

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) verdict: Verdict,
    pub(super) sections: Vec<Section>,
    /// Pictures that drawings use, as one hidden drawing.
    pub(super) pictures: String,
}

/// The answer at the top.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    pub(super) headline: String,
    pub(super) statements: Vec<String>,
    pub(super) caveats: Vec<String>,
    pub(super) figure: Option<Figure>,
    /// What to do, in a sentence.
    pub(super) advice: String,
    /// The comparison and the cost.
    pub(super) tables: Vec<Table>,
}

/// A titled part of the report.
#[derive(Debug, Default, Serialize)]
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: String,
    pub(super) lead: Vec<String>,
    pub(super) blocks: Vec<Block>,
}

/// A part of a section.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Block {
    /// A table.
    Table(Table),
    /// Figures side by side.
    Figures {
        /// The figures.
        figures: Vec<Figure>,
        /// Number of figures in a row on a wide screen.
        columns: usize,
        /// A caption for all of them; empty where each has its own.
        caption: String,
    },
    /// Blocks side by side where there is room.
    Beside {
        /// The blocks.
        blocks: Vec<Block>,
    },
    /// A folded part.
    Details {
        /// What is shown while it is folded.
        summary: String,
        /// What is folded.
        blocks: Vec<Block>,
    },
    /// Captions whose tokens are colored.
    Captions(Captions),
    /// Clusters, one card each.
    Cards {
        /// A title for all of them.
        title: String,
        /// The cards.
        cards: Vec<Card>,
    },
    /// Colors and what they stand for.
    Legend {
        /// Marks with their names.
        marks: Vec<Mark>,
    },
    /// A line of code to copy.
    Command {
        /// The code.
        code: String,
    },
    /// Example retrievals.
    Sheet(Sheet),
    /// A list of sentences.
    List {
        /// The sentences.
        items: Vec<String>,
    },
}

impl Block {
    /// Figures that share one caption; `None` without a figure.
    pub(super) fn figures(mut figures: Vec<Figure>, columns: usize) -> Option<Self> {
        let first = figures.first()?.caption.clone();

        // A caption that all figures have would be read several times in a row.
        let shared = figures.len() > 1 && figures.iter().all(|f| f.caption == first);
        let caption = if shared { first } else { String::new() };

        if shared {
            for figure in &mut figures {
                figure.caption.clear();
            }
        }
        Some(Self::Figures { figures, columns, caption })
    }
}

/// A table: every cell is text.
#[derive(Debug, Default, Serialize)]
pub(super) struct Table {
    pub(super) title: String,
    /// What the numbers are, in a line.
    pub(super) note: String,
    pub(super) head: Vec<Cell>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Whether the numbers are somebody else's.
    pub(super) foreign: bool,
}

/// One cell.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Cell {
    pub(super) text: String,
    /// A second, smaller line.
    pub(super) sub: String,
    /// Tooltip.
    pub(super) title: String,
    /// Whether it stands out: the best of its column, or a difference that is shown.
    pub(super) best: bool,
    /// Whether it holds words, which are aligned left, and not a number.
    pub(super) words: bool,
    /// CSS class of a color mark before the text.
    pub(super) mark: String,
    /// Whether it was measured on some machine, and may differ on another.
    pub(super) measured: bool,
    /// A file that it leads to, relative to the report.
    pub(super) link: String,
}

impl Cell {
    /// A cell that says that there is no number.
    pub(super) fn nothing() -> Self {
        Self::number(super::words::NOTHING)
    }

    /// A difference with its interval below, bold where the interval excludes zero.
    pub(super) fn difference(difference: Option<Difference>) -> Self {
        let Some(difference) = difference else { return Self::nothing() };

        let interval = difference.interval.map_or_else(
            || difference.without_interval().to_owned(),
            |(low, high)| format!("{} \u{2026} {}", signed(low, 1), signed(high, 1)),
        );

        let covers = difference.covers.map(|covers| format!("covers {covers}"));
        Self {
            sub: interval,
            title: covers.unwrap_or_default(),
            best: matches!(difference.sign(), Sign::Above | Sign::Below),
            ..Self::number(signed(difference.mean, 1))
        }
    }

    /// A cell of words.
    pub(super) fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), words: true, ..Self::default() }
    }

    /// A cell with a number.
    pub(super) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Adds a second line.
    #[must_use]
    pub(super) fn with_sub(mut self, sub: impl Into<String>) -> Self {
        self.sub = sub.into();
        self
    }

    /// Adds a tooltip.
    #[must_use]
    pub(super) fn with_title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// Adds a color mark.
    #[must_use]
    pub(super) fn with_mark(mut self, mark: impl Into<String>) -> Self {
        self.mark = mark.into();
        self
    }
}

/// A drawing with its caption.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub(super) title: String,
    /// What is drawn, in a line.
    pub(super) caption: String,
    pub(super) svg: String,
}

impl Figure {
    /// A figure, if there is a drawing.
    pub(super) fn new(title: &str, caption: &str, svg: Option<String>) -> Option<Self> {
        let (title, caption) = (title.to_owned(), caption.to_owned());
        svg.map(|svg| Self { title, caption, svg })
    }
}

/// A color and what it stands for.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Mark {
    /// CSS class of the color.
    pub(super) class: String,
    pub(super) name: String,
}

/// The same captions as several models see them.
#[derive(Debug, Serialize)]
pub(super) struct Captions {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) sides: Vec<CaptionSide>,
}

/// Captions as one model sees them.
#[derive(Debug, Serialize)]
pub(super) struct CaptionSide {
    pub(super) name: String,
    pub(super) lines: Vec<Vec<CaptionToken>>,
}

/// A token of a caption.
#[derive(Debug, Serialize)]
pub(super) struct CaptionToken {
    pub(super) text: String,
    pub(super) expert: u32,
    /// CSS class of its expert's color.
    pub(super) class: String,
}

/// A cluster and what lies in it.
#[derive(Debug, Serialize)]
pub(super) struct Card {
    pub(super) title: String,
    /// CSS class of its color.
    pub(super) class: String,
    pub(super) facts: Vec<String>,
    /// Patches of pictures, as `data:` URIs.
    pub(super) crops: Vec<Crop>,
    /// Tokens of captions.
    pub(super) words: Vec<String>,
}

/// A part of a picture around a patch.
#[derive(Debug, Serialize)]
pub(super) struct Crop {
    pub(super) uri: String,
    pub(super) title: String,
}

/// Example retrievals.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sheet {
    pub(super) note: String,
    pub(super) queries: Vec<Query>,
}

/// A caption and the pictures it found.
#[derive(Debug, Serialize)]
pub(super) struct Query {
    pub(super) text: String,
    /// The rank of the caption's own picture, in words.
    pub(super) outcome: String,
    pub(super) hits: Vec<Hit>,
    /// The caption's own picture, where it is not among the hits.
    pub(super) missed: Option<Hit>,
}

/// A picture that was found.
#[derive(Debug, Serialize)]
pub(super) struct Hit {
    pub(super) sample: u32,
    /// `data:` URI, empty where the picture is missing.
    pub(super) picture: String,
    pub(super) score: String,
    pub(super) own: bool,
}
