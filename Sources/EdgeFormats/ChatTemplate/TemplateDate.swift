// The date that a template may ask for, and `strftime` on it.

/// A local date and time as a value, for `strftime_now`.
package struct TemplateDate: Sendable {
    package var year: Int
    /// 1 to 12.
    package var month: Int
    package var day: Int
    package var hour: Int
    package var minute: Int
    package var second: Int

    /// What Llama 3.1's own template takes for today when it has no clock.
    package static let assumed = TemplateDate(year: 2024, month: 7, day: 26)

    package init(year: Int, month: Int, day: Int, hour: Int = 0, minute: Int = 0, second: Int = 0) {
        self.year = year
        self.month = month
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second
    }
}

extension TemplateDate {
    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ]
    private static let weekdays = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]

    /// 0 is Sunday. Sakamoto's method, for the Gregorian calendar.
    private var weekday: Int {
        let offsets = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]
        let year = month < 3 ? year - 1 : year
        let sum = year + year / 4 - year / 100 + year / 400 + offsets[month - 1] + day
        return ((sum % 7) + 7) % 7
    }

    /// From 1.
    private var dayOfYear: Int {
        let isLeapYear = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334]
        return before[month - 1] + day + (isLeapYear && month > 2 ? 1 : 0)
    }

    /// glibc's `strftime` in the C locale; nil for a conversion that is not one of `aAbBdDeFhHIjklmMnpRStTuwyY%`, or for
    /// a flag other than "-", which drops the padding.
    func formatted(_ format: String) -> String? {
        guard (1...12).contains(month), (1...9999).contains(year) else { return nil }
        var result = ""
        var scalars = format.unicodeScalars.makeIterator()
        while let scalar = scalars.next() {
            guard scalar == "%" else {
                result.unicodeScalars.append(scalar)
                continue
            }
            var conversion = scalars.next()
            let isPadded = conversion != "-"
            if !isPadded { conversion = scalars.next() }
            guard let conversion, let text = converted(conversion, isPadded: isPadded) else { return nil }
            result += text
        }
        return result
    }

    private func converted(_ conversion: Unicode.Scalar, isPadded: Bool) -> String? {
        func padded(_ number: Int, _ width: Int = 2, with filling: String = "0") -> String {
            let text = String(number)
            return isPadded ? String(repeating: filling, count: max(0, width - text.utf8.count)) + text : text
        }
        let hourOfTwelve = hour % 12 == 0 ? 12 : hour % 12
        return switch conversion {
        case "Y": String(year)
        case "y": padded(year % 100)
        case "m": padded(month)
        case "d": padded(day)
        case "e": padded(day, with: " ")
        case "H": padded(hour)
        case "k": padded(hour, with: " ")
        case "I": padded(hourOfTwelve)
        case "l": padded(hourOfTwelve, with: " ")
        case "M": padded(minute)
        case "S": padded(second)
        case "j": padded(dayOfYear, 3)
        case "p": hour < 12 ? "AM" : "PM"
        case "B": Self.months[month - 1]
        case "b", "h": String(Self.months[month - 1].prefix(3))
        case "A": Self.weekdays[weekday]
        case "a": String(Self.weekdays[weekday].prefix(3))
        case "u": String(weekday == 0 ? 7 : weekday)
        case "w": String(weekday)
        case "F": formatted("%Y-%m-%d")
        case "D": formatted("%m/%d/%y")
        case "T": formatted("%H:%M:%S")
        case "R": formatted("%H:%M")
        case "n": "\n"
        case "t": "\t"
        case "%": "%"
        default: nil
        }
    }
}
