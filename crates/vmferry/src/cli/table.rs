//! Aligned text tables.

/// A table: a heading, rows, and columns as wide as their widest cell. The first column is aligned left, all others right.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
    aligned_left: usize,
}

/// Between two columns.
const GAP: &str = "   ";

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        Table {
            rows: vec![headings.into_iter().map(Into::into).collect()],
            aligned_left: 1,
        }
    }

    /// Aligns the first `columns` columns left.
    pub fn left(mut self, columns: usize) -> Self {
        self.aligned_left = columns;
        self
    }

    /// Adds a row at the end.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn width(&self, column: usize) -> usize {
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str(GAP);
                }
                let padding = " ".repeat(self.width(column).saturating_sub(cell.chars().count()));
                if column < self.aligned_left {
                    line.push_str(cell);
                    line.push_str(&padding);
                } else {
                    line.push_str(&padding);
                    line.push_str(cell);
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["stage", "time"]);
        table.row(["reserve", "3 ms"]);
        table.row(["é", "1,000 ms"]);
        assert_eq!(
            table.to_string(),
            "stage         time\n\
             reserve       3 ms\n\
             é         1,000 ms\n"
        );
    }
}
