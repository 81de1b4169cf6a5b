//! Writes small device trees.

/// A node to be written. Its methods replace what has the same name.
#[derive(Clone)]
pub(super) struct Tree {
    name: String,
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<Tree>,
}

/// A node without anything. The root's name is empty.
pub(super) fn node(name: &str) -> Tree {
    Tree { name: name.into(), properties: Vec::new(), children: Vec::new() }
}

/// Cells as they stand in a property.
pub(super) fn big_endian(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

impl Tree {
    pub(super) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self = self.without(name);
        self.properties.push((name.into(), value.into()));
        self
    }

    pub(super) fn cells(self, name: &str, values: &[u32]) -> Self {
        self.bytes(name, &big_endian(values))
    }

    pub(super) fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, format!("{value}\0").as_bytes())
    }

    /// `#address-cells` and `#size-cells`.
    pub(super) fn bus(self, address_cells: u32, size_cells: u32) -> Self {
        self.cells("#address-cells", &[address_cells]).cells("#size-cells", &[size_cells])
    }

    pub(super) fn without(mut self, property: &str) -> Self {
        self.properties.retain(|(name, _)| name != property);
        self
    }

    pub(super) fn child(mut self, child: Tree) -> Self {
        self.children.retain(|other| other.name != child.name);
        self.children.push(child);
        self
    }

    /// The tree with its child `name` changed.
    pub(super) fn edit(mut self, name: &str, change: impl FnOnce(Tree) -> Tree) -> Self {
        let child = self.children.iter_mut().find(|child| child.name == name).unwrap();
        *child = change(child.clone());
        self
    }

    pub(super) fn blob(&self, reservations: &[(u64, u64)]) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.blob(reservations)
    }

    fn write(&self, writer: &mut Writer) {
        writer.open(&self.name);
        for (name, value) in &self.properties {
            writer.property(name, value);
        }
        for child in &self.children {
            child.write(writer);
        }
        writer.close();
    }
}

/// The blocks of a blob.
#[derive(Default)]
pub(super) struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Writer {
    /// With these blocks, whatever is in them; only the end of the structure is added.
    pub(super) fn raw(structure: Vec<u8>, strings: &[u8]) -> Self {
        Self { structure, strings: strings.into() }
    }

    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn padded(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    pub(super) fn open(&mut self, name: &str) {
        self.word(1);
        self.padded(name.bytes().chain([0]));
    }

    pub(super) fn close(&mut self) {
        self.word(2);
    }

    pub(super) fn property(&mut self, name: &str, value: &[u8]) {
        let name = [name.as_bytes(), &[0]].concat();
        let offset = self.strings.windows(name.len()).position(|at| at == name).unwrap_or_else(|| {
            self.strings.extend(&name);
            self.strings.len() - name.len()
        });
        self.word(3);
        self.word(value.len() as u32);
        self.word(offset as u32);
        self.padded(value.iter().copied());
    }

    pub(super) fn blob(self, reservations: &[(u64, u64)]) -> Vec<u8> {
        const HEADER: usize = 40;
        let reservations: Vec<u8> = reservations
            .iter()
            .chain(&[(0, 0)])
            .flat_map(|&(base, size)| [base, size])
            .flat_map(u64::to_be_bytes)
            .collect();
        let structure = [self.structure, big_endian(&[9])].concat();
        let at_structure = HEADER + reservations.len();
        let at_strings = at_structure + structure.len();
        let size = at_strings + self.strings.len();
        let header = [
            MAGIC as usize,
            size,
            at_structure,
            at_strings,
            HEADER,
            17,
            16,
            0,
            self.strings.len(),
            structure.len(),
        ];
        [big_endian(&header.map(|word| word as u32)), reservations, structure, self.strings].concat()
    }
}

const MAGIC: u32 = 0xd00d_feed;
