//! A snapshot is what the metrics of a node say at one moment, as plain values.
//!
//! An exporter turns a [`Snapshot`] into its own format. Code above this crate makes the Prometheus
//! text of it.

/// A snapshot holds the metrics of a node at one moment, family by family.
///
/// [`Metrics::read`](super::Metrics::read) returns one. The sources of
/// [`Metrics::add_source`](super::Metrics::add_source) add families to it.
///
/// # Examples
///
/// ```
/// use airwave_core::observe::Snapshot;
///
/// let mut snapshot = Snapshot::default();
/// snapshot
///     .gauge("shop_open_carts", "Carts that hold something")
///     .add(&[("country", "de")], 2_u64)
///     .add(&[("country", "fr")], 3_u64);
/// assert_eq!(snapshot.total("shop_open_carts", &[]), Some(5.0));
/// assert_eq!(snapshot.total("shop_open_carts", &[("country", "fr")]), Some(3.0));
/// assert_eq!(snapshot.total("shop_closed_carts", &[]), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    families: Vec<Family>,
}

/// A family holds the samples of one name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Family {
    /// Holds the name, with the suffix of its kind (`_total`, `_info`).
    pub name: String,
    /// Says what the family counts or measures, in one line.
    pub help: String,
    /// Says how the values behave.
    pub kind: Kind,
    /// Holds one sample for each combination of labels.
    pub samples: Vec<Sample>,
}

/// The kind says how the values of a family behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The values only grow.
    Counter,
    /// The values go up and down.
    Gauge,
    /// The labels carry the information; the value is 1.
    Info,
    /// The values count observations by size.
    Histogram,
}

/// A sample is one value, with the labels that tell it from the others of its family.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Holds the names and values of the labels.
    pub labels: Vec<(String, String)>,
    /// Holds the value.
    pub value: Value,
}

/// A value is what a sample says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// The value is a whole number that cannot be negative.
    Unsigned(u64),
    /// The value is a whole number.
    Signed(i64),
    /// The value is any other number, such as seconds.
    Float(f64),
    /// The value holds observations by size.
    Histogram(Histogram),
}

/// A histogram counts observations by size.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Histogram {
    /// Holds the upper bound of each bucket but the last, in the unit of the family, in ascending
    /// order. A bucket includes its bound.
    pub bounds: Vec<f64>,
    /// Counts the observations in each bucket. The last bucket, which has no bound, holds all
    /// larger ones.
    pub counts: Vec<u64>,
    /// Holds the sum of all observations, in the unit of the family.
    pub sum: f64,
}

impl Snapshot {
    /// Adds a family of numbers that only grow. `name` ends with `_total`; `help` is one line.
    pub fn counter(&mut self, name: &str, help: &str) -> &mut Family {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, help, Kind::Counter)
    }

    /// Adds a family of numbers that go up and down. `help` is one line.
    pub fn gauge(&mut self, name: &str, help: &str) -> &mut Family {
        self.family(name, help, Kind::Gauge)
    }

    /// Adds a family whose labels carry the information, with the value 1. `name` ends with
    /// `_info`; `help` is one line.
    pub fn info(&mut self, name: &str, help: &str) -> &mut Family {
        debug_assert!(name.ends_with("_info"), "{name}");
        self.family(name, help, Kind::Info)
    }

    /// Adds a family of observations by size. `help` is one line.
    pub fn histogram(&mut self, name: &str, help: &str) -> &mut Family {
        self.family(name, help, Kind::Histogram)
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind) -> &mut Family {
        debug_assert!(!help.contains(['\n', '\\', '"']), "{help}");
        let index = self.families.len();
        self.families.push(Family {
            name: name.to_owned(),
            help: help.to_owned(),
            kind,
            samples: Vec::new(),
        });
        &mut self.families[index]
    }

    /// Returns all families, in the order in which they were added.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Returns the sum of the samples of a family that have these labels, whatever else they have.
    ///
    /// The sum of a histogram is its number of observations. `None`: no sample has this name and
    /// these labels.
    pub fn total(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let families = self.families.iter().filter(|family| family.name == name);
        let samples = families.flat_map(|family| &family.samples);
        let fitting = samples.filter(|sample| labels.iter().all(|(label, value)| sample.has(label, value)));
        fitting.map(|sample| sample.value.as_f64()).reduce(|sum, value| sum + value)
    }
}

impl Family {
    /// Adds the sample with these labels.
    pub fn add(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) -> &mut Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.samples.push(Sample {
            labels: labels.iter().map(owned).collect(),
            value: value.into(),
        });
        self
    }
}

impl Sample {
    fn has(&self, label: &str, value: &str) -> bool {
        self.labels.iter().any(|(name, own)| name == label && own == value)
    }
}

impl Value {
    fn as_f64(&self) -> f64 {
        match self {
            Value::Unsigned(value) => *value as f64,
            Value::Signed(value) => *value as f64,
            Value::Float(value) => *value,
            Value::Histogram(histogram) => histogram.count() as f64,
        }
    }
}

impl Histogram {
    /// Returns a histogram with these buckets. `counts` has one entry more than `bounds`.
    pub fn new(bounds: Vec<f64>, counts: Vec<u64>, sum: f64) -> Self {
        debug_assert_eq!(counts.len(), bounds.len() + 1);
        Self { bounds, counts, sum }
    }

    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Unsigned(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Unsigned(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Unsigned(value as u64)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Signed(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Value::Signed(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Float(value)
    }
}

impl From<Histogram> for Value {
    fn from(value: Histogram) -> Self {
        Value::Histogram(value)
    }
}
