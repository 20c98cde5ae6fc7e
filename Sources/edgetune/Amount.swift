// Numbers for people: sizes in MiB and GiB, times, tables.
import EdgeWire
import Foundation

enum Amount {
    static func bytes(_ count: UInt64) -> String {
        let (value, unit) = scaled(count)
        return "\(value) \(unit)"
    }

    /// `310/900 MiB`: both in the unit of the second.
    static func bytes(_ part: UInt64, of whole: UInt64) -> String {
        let isGiB = whole >= 1 << 30
        let unit = Double(isGiB ? 1 << 30 : 1 << 20)
        let digits = isGiB ? 2 : 0
        return "\(fixed(Double(part) / unit, digits))/\(fixed(Double(whole) / unit, digits)) \(isGiB ? "GiB" : "MiB")"
    }

    private static func scaled(_ count: UInt64) -> (String, String) {
        switch count {
        case ..<1024: ("\(count)", "B")
        case ..<(1 << 20): (fixed(Double(count) / 1024, 1), "KiB")
        case ..<(1 << 30): (fixed(Double(count) / 1_048_576, 1), "MiB")
        default: (fixed(Double(count) / 1_073_741_824, 2), "GiB")
        }
    }

    static func fixed(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }

    static func duration(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds >= 0, seconds < 1e9 else { return "?" }
        let whole = Int(seconds.rounded())
        if whole < 60 { return "\(whole)s" }
        if whole < 3600 { return "\(whole / 60)m\(padded(whole % 60))s" }
        return "\(whole / 3600)h\(padded(whole % 3600 / 60))m"
    }

    private static func padded(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }

    static func time(_ date: Date) -> String {
        var seconds = time_t(date.timeIntervalSince1970)
        var parts = tm()
        localtime_r(&seconds, &parts)
        return String(
            format: "%04d-%02d-%02d %02d:%02d:%02d", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
            parts.tm_hour, parts.tm_min, parts.tm_sec)
    }
}

enum Table {
    /// Columns padded to their widest cell, two spaces between. Cells are made safe for a terminal.
    static func text(_ header: [String], _ rows: [[String]]) -> String {
        let lines = ([header] + rows).map { $0.map(TerminalFilter.line) }
        let widths = header.indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
        return lines.map { cells in
            var line = ""
            for (column, cell) in cells.enumerated() {
                line += cell
                if column < cells.count - 1 {
                    line += String(repeating: " ", count: widths[column] - cell.count + 2)
                }
            }
            while line.last == " " { line.removeLast() }
            return line
        }.joined(separator: "\n")
    }

    /// `name: value` lines, the values in one column.
    static func text(_ rows: [(String, String)]) -> String {
        let width = rows.map(\.0.count).max() ?? 0
        return rows.map { name, value in
            name + ":" + String(repeating: " ", count: width - name.count + 1) + TerminalFilter.line(value)
        }.joined(separator: "\n")
    }
}

enum JSONText {
    /// One line of the wire's JSON.
    static func line<Value: Encodable>(_ value: Value) throws -> String {
        String(decoding: try Wire.encoder().encode(value), as: UTF8.self)
    }
}
