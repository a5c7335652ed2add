//! Percentiles, and a histogram drawn with characters.

use std::fmt::Write;

/// Width of the longest bar.
const WIDTH: f64 = 44.0;
/// Eighths of a character cell.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// The value below which a part `q` of the sorted samples lies.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let at = (q * (sorted.len() - 1) as f64).round() as usize;
    sorted[at.min(sorted.len() - 1)]
}

fn bar(part: f64) -> String {
    let eighths = (part * WIDTH * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

/// Samples in microseconds, sorted, in buckets that grow by the square root of two.
pub(crate) fn histogram(sorted: &[f64]) -> String {
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return String::new() };
    let step = std::f64::consts::SQRT_2;
    let bucket = |value: f64| (value.max(1.0).ln() / step.ln()).floor() as i32;
    let (low, high) = (bucket(*first), bucket(*last));
    let mut counts = vec![0usize; (high - low + 1) as usize];
    for sample in sorted {
        counts[(bucket(*sample) - low) as usize] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut text = String::new();
    for (at, count) in counts.iter().enumerate() {
        let upper = step.powi(low + at as i32 + 1);
        let _ = writeln!(text, "  < {upper:>9.0} µs {count:>8}  {}", bar(*count as f64 / most));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_one_bucket_and_the_fullest_is_widest() {
        let samples = [12.0, 13.0, 15.0, 40.0, 1000.0];
        let text = histogram(&samples);
        let counts: Vec<usize> = text
            .lines()
            .map(|line| line.split_whitespace().nth(3).expect("a count").parse().expect("a number"))
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), samples.len());
        let widest =
            text.lines().max_by_key(|line| line.chars().filter(|c| *c == '█').count()).expect("lines");
        assert!(widest.contains(" 3  "), "{text}");
        assert_eq!(histogram(&[]), "");
    }

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (1..=101).map(f64::from).collect();
        assert_eq!((quantile(&samples, 0.5), quantile(&samples, 1.0)), (51.0, 101.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
