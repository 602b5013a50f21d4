//! Rounds of measurements into one table: medians, and ratios against the raw limit of the same
//! round.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measured::{Figure, Measured, OTHERS_BUSY};
use crate::process::Kind;

/// All rounds of one scenario.
pub struct Report {
    /// What was measured.
    pub title: String,
    /// How: one paragraph.
    pub setting: String,
    /// What each column shows.
    pub columns: Vec<Column>,
    /// One entry per round.
    pub rounds: Vec<BTreeMap<Kind, Result<Measured, String>>>,
}

/// One column of a table.
pub struct Column {
    head: &'static str,
    figure: Figure,
    decimals: usize,
    /// Whose figure it is divided by.
    relative: Option<Kind>,
}

impl Column {
    /// The median of the rounds.
    pub fn plain(head: &'static str, decimals: usize, figure: Figure) -> Self {
        Self {
            head,
            figure,
            decimals,
            relative: None,
        }
    }

    /// The median of the rounds' ratios to the raw limit.
    pub fn to_raw(head: &'static str, figure: Figure) -> Self {
        Self::to(Kind::Raw, head, figure)
    }

    /// The median of the rounds' ratios to another server.
    pub fn to(other: Kind, head: &'static str, figure: Figure) -> Self {
        Self {
            head,
            figure,
            decimals: 2,
            relative: Some(other),
        }
    }
}

impl Report {
    fn servers(&self) -> Vec<Kind> {
        let mut servers: Vec<Kind> = self.rounds.iter().flat_map(|round| round.keys().copied()).collect();
        servers.sort_unstable();
        servers.dedup();
        servers
    }

    fn values(&self, kind: Kind, figure: Figure, relative: Option<Kind>) -> Vec<f64> {
        let of = |round: &BTreeMap<Kind, Result<Measured, String>>, kind| round.get(&kind)?.as_ref().ok().and_then(figure);
        let values = self.rounds.iter().filter_map(|round| {
            let value = of(round, kind)?;
            match relative {
                Some(other) => of(round, other).map(|its| value / its),
                None => Some(value),
            }
        });
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    /// The median of a figure over the rounds.
    pub fn median(&self, kind: Kind, figure: Figure) -> Option<f64> {
        middle(&self.values(kind, figure, None))
    }

    /// The median over the rounds of a figure's ratio to the raw limit of the same round.
    pub fn ratio(&self, kind: Kind, figure: Figure) -> Option<f64> {
        middle(&self.values(kind, figure, Some(Kind::Raw)))
    }

    /// The most that others used of the machine during a measurement, in percent of one processor.
    pub fn disturbance(&self) -> f64 {
        let all = self.rounds.iter().flat_map(BTreeMap::values).flatten();
        all.filter_map(OTHERS_BUSY).fold(0.0, f64::max)
    }

    /// Runs that failed, and what every listener should have seen and did not. Empty: all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (number, round) in self.rounds.iter().enumerate() {
            for (kind, outcome) in round {
                let fault = match outcome {
                    Ok(measured) => measured.faults(),
                    Err(error) => Some(error.clone()),
                };
                if let Some(fault) = fault {
                    faults.push(format!("{}, {kind}, round {}: {fault}", self.title, number + 1));
                }
            }
        }
        faults
    }

    /// The table, with its faults below it.
    pub fn markdown(&self) -> String {
        let mut rows = vec![vec!["server".to_owned()]];
        rows[0].extend(self.columns.iter().map(|column| column.head.to_owned()));
        for kind in self.servers() {
            let mut row = vec![kind.to_string()];
            row.extend(self.columns.iter().map(|column| self.cell(kind, column)));
            rows.push(row);
        }
        let mut text = format!("### {}\n\n{}\n\n{}", self.title, self.setting, grid(&rows));
        for fault in self.faults() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n**FAULT** {}", fault.replace('\n', " "));
        }
        text
    }

    fn cell(&self, kind: Kind, column: &Column) -> String {
        let values = self.values(kind, column.figure, column.relative);
        let Some(median) = middle(&values) else { return "–".into() };
        let decimals = column.decimals;
        let mut cell = format!("{median:.decimals$}");
        // A ratio of several rounds shows how far they lie apart; the yardstick's own is always 1.
        if column.relative.is_some_and(|yardstick| yardstick != kind) && values.len() > 1 {
            let _ = write!(cell, " ({:.decimals$}–{:.decimals$})", values[0], values[values.len() - 1]);
        }
        cell
    }
}

fn middle(sorted: &[f64]) -> Option<f64> {
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[count / 2]),
        count => Some((sorted[count / 2 - 1] + sorted[count / 2]) / 2.0),
    }
}

/// A Markdown table that can also be read as it stands; the first row is its head, the first column
/// its names.
pub fn grid(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = if column == 0 {
                    write!(text, "|{:-<1$}", "", width + 2)
                } else {
                    write!(text, "|{:-<1$}:", "", width + 1)
                };
            }
            text.push_str("|\n");
        }
    }
    text
}

/// One row of the budgets.
pub struct Budget {
    /// What is bounded.
    pub figure: String,
    /// What was measured, if it was.
    pub measured: Option<f64>,
    /// What it must reach from the beginning, if anything.
    pub foundation: Option<f64>,
    /// What it is to reach, if anything.
    pub goal: Option<f64>,
    /// Whether more is better.
    pub more: bool,
    /// Behind the numbers.
    pub unit: &'static str,
}

impl Budget {
    fn row(&self) -> Vec<String> {
        let sign = if self.more { "≥" } else { "≤" };
        let meets = |bound: Option<f64>| {
            self.measured
                .zip(bound)
                .is_some_and(|(value, bound)| if self.more { value >= bound } else { value <= bound })
        };
        let verdict = match self.measured {
            None => "not measured",
            Some(_) if self.foundation.or(self.goal).is_none() => "no bound",
            Some(_) if meets(self.goal) => "goal met",
            Some(_) if meets(self.foundation) => "foundation met",
            Some(_) => "**missed**",
        };
        let unit = self.unit;
        let bound = |bound: Option<f64>| bound.map_or("–".into(), |bound| format!("{sign} {bound:.2}{unit}"));
        vec![
            self.figure.clone(),
            self.measured.map_or("–".into(), |value| format!("{value:.2}{unit}")),
            bound(self.foundation),
            bound(self.goal),
            verdict.to_owned(),
        ]
    }
}

/// The budgets beside what was measured.
pub fn budgets(rows: &[Budget]) -> String {
    let mut cells = vec![
        ["figure", "measured", "foundation", "goal", "verdict"]
            .map(str::to_owned)
            .to_vec(),
    ];
    cells.extend(rows.iter().map(Budget::row));
    grid(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rounds: &[[f64; 2]]) -> Report {
        let measured = |deliveries: f64| {
            Ok(Measured {
                deliveries: deliveries as u64,
                ..Measured::default()
            })
        };
        Report {
            title: "t".into(),
            setting: "s".into(),
            columns: vec![
                Column::plain("n", 0, |measured| Some(measured.deliveries as f64)),
                Column::to_raw("÷ raw", |measured| Some(measured.deliveries as f64)),
            ],
            rounds: rounds
                .iter()
                .map(|[raw, airwave]| {
                    [(Kind::Raw, measured(*raw)), (Kind::Airwave, measured(*airwave))]
                        .into_iter()
                        .collect()
                })
                .collect(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round ran on a machine half as fast: the ratio of medians would be wrong, the
        // median of ratios is not.
        let report = report(&[[100.0, 200.0], [50.0, 100.0], [100.0, 200.0]]);
        assert_eq!(
            report.ratio(Kind::Airwave, |measured| Some(measured.deliveries as f64)),
            Some(2.0)
        );
        assert_eq!(
            report.median(Kind::Airwave, |measured| Some(measured.deliveries as f64)),
            Some(200.0)
        );
    }

    #[test]
    fn a_table_is_markdown_and_aligned() {
        let text = report(&[[100.0, 250.0], [100.0, 200.0]]).markdown();
        let lines: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            lines,
            [
                "| server    |   n |            ÷ raw |",
                "|-----------|----:|-----------------:|",
                "| raw limit | 100 |             1.00 |",
                "| Airwave   | 225 | 2.25 (2.00–2.50) |",
            ]
        );
    }

    #[test]
    fn faults_stand_below_the_table() {
        let mut report = report(&[[1.0, 1.0]]);
        assert!(report.faults().is_empty());
        report.rounds[0].insert(
            Kind::Airwave,
            Ok(Measured {
                lost: 3,
                ..Measured::default()
            }),
        );
        report.rounds[0].insert(Kind::Axum, Err("it\nfell over".into()));
        let faults = report.faults();
        assert_eq!(faults.len(), 2);
        assert!(faults[1].contains("3 lost"), "{faults:?}");
        assert!(
            report
                .markdown()
                .contains("**FAULT** t, hand-written axum, round 1: it fell over")
        );
    }

    #[test]
    fn the_worst_disturbance_is_told() {
        use std::time::Duration;
        let mut report = report(&[[1.0, 1.0], [1.0, 1.0]]);
        let disturbed = Measured {
            others_cpu: Duration::from_secs(3),
            wall: Duration::from_secs(2),
            ..Measured::default()
        };
        report.rounds[1].insert(Kind::Raw, Ok(disturbed));
        report.rounds[0].insert(Kind::Axum, Err("failed".into()));
        assert_eq!(report.disturbance(), 150.0);
    }

    #[test]
    fn budgets_have_verdicts() {
        let budget = |measured, more| Budget {
            figure: "f".into(),
            measured,
            foundation: Some(5.0),
            goal: Some(if more { 9.0 } else { 2.0 }),
            more,
            unit: "",
        };
        let verdicts: Vec<String> = [
            budget(Some(9.0), true),
            budget(Some(5.0), true),
            budget(Some(4.9), true),
            budget(Some(2.0), false),
            budget(Some(5.0), false),
            budget(Some(5.1), false),
            budget(None, true),
        ]
        .iter()
        .map(|budget| budget.row()[4].clone())
        .collect();
        assert_eq!(
            verdicts,
            [
                "goal met",
                "foundation met",
                "**missed**",
                "goal met",
                "foundation met",
                "**missed**",
                "not measured"
            ]
        );
    }
}
