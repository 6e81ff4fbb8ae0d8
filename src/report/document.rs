//! The report as data: sections of tables, figures and notes. HTML and Markdown are two
//! templates over the same tree, so they cannot disagree.
//!
//! Text fields are plain; `` `code` `` is the only markup. Templates escape.

use serde::Serialize;

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) verdict: Verdict,
    pub(super) sections: Vec<Section>,
}

/// The answer at the top.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    pub(super) headline: String,
    pub(super) statements: Vec<String>,
    pub(super) caveats: Vec<String>,
    pub(super) figure: Option<Figure>,
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
        /// Figures in a row on a wide screen.
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
        /// What stands on the fold.
        summary: String,
        /// What is under it.
        blocks: Vec<Block>,
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
        let shared = figures.len() > 1 && figures.iter().all(|f| f.caption == first);
        if shared {
            for figure in &mut figures {
                figure.caption.clear();
            }
        }
        let caption = if shared { first } else { String::new() };
        Some(Self::Figures { figures, columns, caption })
    }
}

/// A table: every cell is text.
#[derive(Debug, Default, Serialize)]
pub(super) struct Table {
    pub(super) title: String,
    /// What the figures are, in a line.
    pub(super) note: String,
    pub(super) head: Vec<Cell>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Marks a table that is not ours.
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
    /// Best of its column.
    pub(super) best: bool,
    /// Words, not numbers: aligned left.
    pub(super) words: bool,
    /// CSS class of a colour mark before the text.
    pub(super) mark: String,
}

impl Cell {
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

    /// Adds a colour mark.
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

/// Example retrievals.
#[derive(Debug, Default, Serialize)]
pub(super) struct Sheet {
    pub(super) note: String,
    pub(super) queries: Vec<Query>,
}

/// A caption and what it found.
#[derive(Debug, Serialize)]
pub(super) struct Query {
    pub(super) text: String,
    /// Where the own picture came, in words.
    pub(super) outcome: String,
    pub(super) hits: Vec<Hit>,
    /// The own picture, where it is not among the hits.
    pub(super) missed: Option<Hit>,
}

/// A picture found.
#[derive(Debug, Serialize)]
pub(super) struct Hit {
    pub(super) sample: u32,
    /// `data:` URI, empty where the picture is missing.
    pub(super) picture: String,
    pub(super) score: String,
    pub(super) own: bool,
}
