// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// objectOutput is the -o of commands that print one thing.
type objectOutput struct {
	Output string `flag:"output" short:"o" choices:"json,yaml" help:"form of the output instead of text"`
}

// printObject prints a message as json or yaml. The field names are those of
// protobuf's JSON mapping.
func printObject(w io.Writer, form string, m proto.Message) error {
	data, err := compactJSON(m)
	if err != nil {
		return err
	}
	return printJSON(w, form, data)
}

// printJSON prints a JSON value, indented, as json or yaml.
func printJSON(w io.Writer, form string, data []byte) (err error) {
	var out bytes.Buffer
	if form == "yaml" {
		if data, err = yamlOf(data); err == nil {
			_, err = out.Write(data)
		}
	} else if err = json.Indent(&out, data, "", "  "); err == nil {
		err = out.WriteByte('\n')
	}
	if err != nil {
		return err
	}
	_, err = out.WriteTo(w)
	return err
}

// compactJSON returns a message as one line. (protojson varies its white space
// on purpose.) What is not printable is escaped: for terminals, and since YAML,
// which it may become, does not have all of it.
func compactJSON(m proto.Message) ([]byte, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, r := range compact.String() {
		if unicode.IsPrint(r) {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.Bytes(), nil
}

// yamlOf turns JSON into YAML, in the same order.
func yamlOf(data []byte) ([]byte, error) {
	var doc yaml.Node // JSON is YAML, written in flow style
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	var block func(n *yaml.Node)
	block = func(n *yaml.Node) {
		if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
			n.Style = 0
		}
		for _, c := range n.Content {
			block(c)
		}
	}
	block(&doc)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return nil, err
	}
	return out.Bytes(), e.Close()
}

// table prints rows in columns. Rows may come in several batches, as a watch
// goes on: a column keeps its width and only grows.
type table struct {
	out    io.Writer
	widths []int
}

// print prints a batch of rows.
func (t *table) print(rows ...[]string) error {
	for _, row := range rows {
		for i, cell := range row {
			cell = printable(cell)
			row[i] = cell
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var out []byte
	for _, row := range rows {
		for i, cell := range row {
			out = append(out, cell...)
			out = append(out, strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+3)...)
		}
		out = append(bytes.TrimRight(out, " "), '\n')
	}
	_, err := t.out.Write(out)
	return err
}

// printable replaces what would do something to a terminal: names and labels are
// whatever their owners have chosen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}

// orNone shows an empty cell as a dash, so that columns can be counted.
func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// since is how long ago a time was, in short; a dash if it is not known.
func since(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	return short(now.Sub(t.AsTime()))
}

// until is how far ahead a time is, in short.
func until(t *timestamppb.Timestamp, now time.Time) string {
	switch {
	case t == nil:
		return "-"
	case t.AsTime().Before(now):
		return "expired"
	}
	return short(t.AsTime().Sub(now))
}

// short is a duration to two units at most: "850ms", "12s", "3m5s", "4h10m", "9d2h".
func short(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	units := []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		s := fmt.Sprintf("%d%s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				s += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return s
	}
	return d.Truncate(time.Millisecond).String()
}
