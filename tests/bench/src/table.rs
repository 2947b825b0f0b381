//! A Markdown table that is also readable as it stands.

pub struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(ToString::to_string).collect()], columns: header.len() }
    }

    /// Missing cells stay empty.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.columns, String::new());
        self.rows.push(cells);
    }

    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns)
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:<width$} "));
            format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
        };
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let mut lines = self.rows.iter().map(|row| line(row));
        let header = lines.next().unwrap_or_default();
        header + &line(&rule) + &lines.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["what", "µs"]);
        table.row(vec!["a".into(), "1234".into()]);
        table.row(vec!["b".into()]);
        assert_eq!(table.render(), "| what | µs   |\n| ---- | ---- |\n| a    | 1234 |\n| b    |      |\n");
    }
}
