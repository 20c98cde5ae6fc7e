// Lengths and hours as people write them: "1d12h", "01:00-06:00".

/// A length of time: numbers with units d, h, m (or min) and s, the larger first ("1d12h", "90min"), or Lightning's
/// `DD:HH:MM:SS`, of which the days may be left out.
package struct TimeSpan: Equatable, Sendable {
    /// 1 to `mostSeconds`.
    package let seconds: Int

    private static let mostSeconds = 365 * 86400
    private static let units: [(names: Set<String>, seconds: Int)] = [
        (["d"], 86400), (["h"], 3600), (["m", "min"], 60), (["s"], 1),
    ]

    package init?(_ text: String) {
        guard text.utf8.count <= 32, let seconds = text.contains(":") ? Self.clock(text) : Self.units(text),
            (1...Self.mostSeconds).contains(seconds)
        else { return nil }
        self.seconds = seconds
    }

    private static func clock(_ text: String) -> Int? {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard (3...4).contains(parts.count) else { return nil }
        var seconds = 0
        for (part, unit) in zip(parts, units.suffix(parts.count)) {
            guard let number = digits(part) else { return nil }
            seconds += number * unit.seconds
        }
        return seconds
    }

    private static func units(_ text: String) -> Int? {
        var rest = Substring(text)
        var seconds = 0
        var allowed = units[...]
        while !rest.isEmpty {
            let number = rest.prefix { $0.isASCII && $0.isNumber }
            let name = rest.dropFirst(number.count).prefix { $0.isLetter }
            guard let value = digits(number), let unit = allowed.firstIndex(where: { $0.names.contains(String(name)) }) else {
                return nil
            }
            seconds += value * units[unit].seconds
            allowed = units[(unit + 1)...]
            rest = rest.dropFirst(number.count + name.count)
        }
        return seconds
    }

    /// Up to nine digits: no sum of them overflows.
    private static func digits(_ text: Substring) -> Int? {
        guard (1...9).contains(text.utf8.count), text.allSatisfy({ ("0"..."9").contains($0) }) else { return nil }
        return Int(text)
    }
}

/// Hours of every day: "01:00-06:00". It may cross midnight ("22:00-06:00"); its end is not in it.
package struct DayWindow: Equatable, Sendable {
    /// Minutes since midnight.
    package let from: Int
    package let to: Int

    package init?(_ text: String) {
        let ends = text.split(separator: "-", omittingEmptySubsequences: false).map { end -> Int? in
            let parts = end.split(separator: ":", omittingEmptySubsequences: false)
            guard parts.count == 2, (1...2).contains(parts[0].utf8.count), parts[1].utf8.count == 2,
                parts.allSatisfy({ $0.allSatisfy { ("0"..."9").contains($0) } }),
                let hour = Int(parts[0]), let minute = Int(parts[1]), minute < 60, hour < 24 || (hour == 24 && minute == 0)
            else { return nil }
            return hour * 60 + minute
        }
        // Of equal ends nobody can say whether they mean never or always.
        guard ends.count == 2, let from = ends[0], let to = ends[1], from != to, from < 24 * 60 else { return nil }
        self.from = from
        self.to = to
    }

    package func contains(minuteOfDay: Int) -> Bool {
        from < to ? (from..<to).contains(minuteOfDay) : minuteOfDay >= from || minuteOfDay < to
    }

    package var text: String { "\(Self.clock(from))-\(Self.clock(to))" }

    package static func clock(_ minuteOfDay: Int) -> String {
        func padded(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
        return padded(minuteOfDay / 60) + ":" + padded(minuteOfDay % 60)
    }
}
