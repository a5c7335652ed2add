use super::super::format::{Blocks, HeadOrder, View};
use super::*;
#[test]
fn differential() {
    let text = std::fs::read_to_string("/work/scratch/golden/fuzz.tsv").unwrap();
    let mut bad = 0;
    for line in text.lines() {
        let f: Vec<&str> = line.split('\t').collect();
        let nums = |s: &str| s.split(',').map(|x| x.parse::<u64>().unwrap()).collect::<Vec<_>>();
        let order = if f[1] == "HND" { HeadOrder::Hnd } else { HeadOrder::Nhd };
        let ours = View::new(&metadata(f[0], &nums(f[2]), &nums(f[3]), 0))
            .and_then(|v| v.physical())
            .and_then(|v| Blocks::detect(&v, order));
        let text = match &ours {
            Ok(b) => {
                let pads =
                    matches!(b.format.name(), "NL_X_NB_BS_NH_CS" | "NL_X_NB_NH_BS_CS" | "NL_X_NB_BS_HS");
                format!(
                    "{} {} {} {} {} {} {}",
                    b.format.name(),
                    b.planes,
                    b.heads,
                    b.head_width,
                    b.slots,
                    b.count,
                    if pads { b.block_stride } else { 0 }
                )
            }
            Err(_) => "refused".to_owned(),
        };
        if text != f[4] {
            bad += 1;
            if bad < 20 {
                println!("{line}\n  ours {text} {ours:?}");
            }
        }
    }
    assert_eq!(bad, 0);
}
