// Columns to values and back. A damaged file can hold anything in any column: what does not fit is an error and never a trap.
import EdgeWire
import Foundation
import GRDB

/// JSON columns hold values as the API writes them.
enum Column {
    static func text(_ value: some Encodable) throws -> String {
        String(decoding: try Wire.encoder().encode(value), as: UTF8.self)
    }
}

extension Row {
    // Not by way of StatementColumnConvertible: SQLite would make 0 of a text that is in a number's place.
    func read<Value: DatabaseValueConvertible>(_ column: String) throws(StoreError) -> Value {
        do { return try decode(Value.self, forColumn: column) } catch { throw unreadable(column, "\(Value.self)") }
    }

    /// Nil also where an older schema has no such column.
    func readIfThere<Value: DatabaseValueConvertible>(_ column: String) throws(StoreError) -> Value? {
        do { return try decodeIfThere(column) } catch { throw unreadable(column, "\(Value.self)") }
    }

    private func decodeIfThere<Value: DatabaseValueConvertible>(_ column: String) throws -> Value? {
        guard hasColumn(column) else { return nil }
        return try decode(Value?.self, forColumn: column)
    }

    func readBytes(_ column: String) throws(StoreError) -> UInt64 {
        guard let bytes = UInt64(exactly: try read(column) as Int64) else { throw unreadable(column, "a count of bytes") }
        return bytes
    }

    /// Nil where an older schema has no such column.
    func readSecondsIfThere(_ column: String) throws(StoreError) -> Double? {
        guard let seconds = try readIfThere(column) as Double? else { return nil }
        guard seconds >= 0, seconds.isFinite else { throw unreadable(column, "a length of time") }
        return seconds
    }

    func readDate(_ column: String) throws(StoreError) -> Date {
        guard let date = try readDateIfThere(column) else { throw unreadable(column, "a time") }
        return date
    }

    func readDateIfThere(_ column: String) throws(StoreError) -> Date? {
        guard let seconds = try readIfThere(column) as Double? else { return nil }
        // Years 1970 to 9999: what ISO 8601 can say.
        guard (0..<253_402_300_800).contains(seconds) else { throw unreadable(column, "a time") }
        return Date(timeIntervalSince1970: seconds)
    }

    func readJSON<Value: Decodable>(_ column: String, as type: Value.Type = Value.self) throws(StoreError) -> Value {
        let text: String = try read(column)
        do { return try Wire.decoder().decode(type, from: Data(text.utf8)) } catch { throw unreadable(column, "\(type)") }
    }

    func readJSONIfThere<Value: Decodable>(_ column: String) throws(StoreError) -> Value? {
        guard try readIfThere(column) as String? != nil else { return nil }
        return try readJSON(column) as Value
    }

    private func unreadable(_ column: String, _ wanted: String) -> StoreError {
        let key = ["id", "name", "digest"].lazy.compactMap { try? self.decodeIfThere($0) as String? }.first
        return .damaged("\(column) of \(key.map { "\"\($0.prefix(80))\"" } ?? "a row") is no \(wanted)")
    }
}
