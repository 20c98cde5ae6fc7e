// Lengths and hours: what is read, and what is refused.
import EdgeWire
import Testing

@Suite struct TimeSpanTests {
    @Test(arguments: [
        ("6h", 21600), ("90m", 5400), ("90min", 5400), ("1d12h", 129_600), ("1h30m5s", 5405), ("45s", 45),
        ("06:00:00", 21600), ("00:06:00:00", 21600), ("01:00:00:01", 86401), ("365d", 365 * 86400),
    ])
    func lengthsAsPeopleWriteThem(_ text: String, _ seconds: Int) {
        #expect(TimeSpan(text)?.seconds == seconds)
    }

    @Test(arguments: [
        "", "6", "h", "0s", "00:00:00", "6 h", "-6h", "6h6h", "6m1h", "1.5h", "366d", "999999999d", "9999999999s", "1:2", "1:2:3:4:5",
        "١h", "a:b:c", "::", "1h ", "6H",
    ])
    func whatIsNoLength(_ text: String) { #expect(TimeSpan(text) == nil) }

    @Test func hoursAreInsideFromTheirStartAndToBeforeTheirEnd() throws {
        let night = try #require(DayWindow("01:00-06:00"))
        #expect([0, 59, 60, 359, 360, 1439].map { night.contains(minuteOfDay: $0) } == [false, false, true, true, false, false])
        let across = try #require(DayWindow("22:30-6:00"))
        #expect(
            [0, 359, 360, 1349, 1350, 1439].map { across.contains(minuteOfDay: $0) } == [true, true, false, false, true, true])
        #expect(across.text == "22:30-06:00")
        let late = try #require(DayWindow("20:00-24:00"))
        #expect([0, 1199, 1200, 1439].map { late.contains(minuteOfDay: $0) } == [false, false, true, true])
    }

    @Test(arguments: ["", "01:00", "01:00-", "01:00-25:00", "24:00-01:00", "1-6", "01:60-02:00", "01:00-01:00", "01:00-06:00-07:00", "+1:00-2:00"])
    func whatAreNoHours(_ text: String) { #expect(DayWindow(text) == nil) }
}
