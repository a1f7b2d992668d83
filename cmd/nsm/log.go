// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"log/slog"
	"strings"
)

// levelTrace is below slog's own levels: what happens on every call.
const levelTrace = slog.LevelDebug - 4

// logLevel is a level under the names that the reference knows as well.
type logLevel slog.Level

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *logLevel) UnmarshalText(text []byte) error {
	switch strings.ToUpper(string(text)) {
	case "TRACE":
		*l = logLevel(levelTrace)
	case "DEBUG":
		*l = logLevel(slog.LevelDebug)
	case "INFO":
		*l = logLevel(slog.LevelInfo)
	case "WARN", "WARNING":
		*l = logLevel(slog.LevelWarn)
	case "ERROR", "FATAL", "PANIC":
		*l = logLevel(slog.LevelError)
	default:
		return errors.New("want TRACE, DEBUG, INFO, WARN or ERROR")
	}
	return nil
}

// newLogger returns a logger that writes lines in the given form, text or json.
func newLogger(w io.Writer, form string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
		if attr.Key == slog.LevelKey && len(groups) == 0 && attr.Value.Any() == levelTrace {
			attr.Value = slog.StringValue("TRACE")
		}
		return attr
	}}
	if form == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
