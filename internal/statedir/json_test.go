// SPDX-License-Identifier: Apache-2.0

package statedir_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

type record struct {
	Name  string `json:"name,omitempty"`
	Count int    `json:"count"`
}

func TestJSON(t *testing.T) {
	for _, tt := range []struct {
		name, content string
		want          string // after a change of count to 7; "" = refused
		says          string
	}{
		{"own", `{"name":"x","count":1}`, `{"count":7,"name":"x"}`, ""},
		{"member left out", `{"count":1}`, `{"count":7}`, ""},
		{"more members", `{"name":"x","count":1,"more":{"a":[1,2]}}`, `{"count":7,"more":{"a":[1,2]},"name":"x"}`, ""},
		{"later version that can be read", `{"version":9,"count":1}`, `{"count":7,"version":9}`, ""},
		{"later version", `{"version":9,"count":{"a":1}}`, "", "later version of nsm (format 9)"},
		{"this version, damaged", `{"version":1,"count":{"a":1}}`, "", "damaged"},
		{"no version, damaged", `{"count":{"a":1}}`, "", "damaged"},
		{"version that is none", `{"version":"x","count":{"a":1}}`, "", "damaged"},
		{"cut", `{"version":9,"count":`, "", "damaged"},
		{"no object", `[]`, "", "damaged"},
		{"null", `null`, "", "damaged"},
		{"empty", ``, "", "damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := open(t, t.TempDir()+"/state")
			if err := dir.Write("r", []byte(tt.content)); err != nil {
				t.Fatal(err)
			}
			var r record
			rest, err := dir.ReadJSON("r", &r, "restore it")
			if tt.want == "" {
				if !errors.Is(err, nserr.StateDir) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("ReadJSON() = %v, want %q", err, tt.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r.Count = 7
			if err := dir.WriteJSON("r", r, rest); err != nil {
				t.Fatal(err)
			}
			data, err := dir.Read("r")
			if got := strings.Join(strings.Fields(string(data)), ""); err != nil || got != tt.want {
				t.Errorf("it holds %s, %v, want %s", got, err, tt.want)
			}
		})
	}
	var r record
	if _, err := open(t, t.TempDir()+"/state").ReadJSON("r", &r, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
