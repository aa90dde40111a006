"""The doctor: runs the laws on somebody's own recipe, and names the lines that break them.

>>> import purerun.doctor
>>> sorted(purerun.doctor.__all__)
['Examined', 'Finding', 'examination', 'examine', 'summary', 'told']
"""

from purerun.doctor.examination import examination, examine
from purerun.doctor.finding import Examined, Finding
from purerun.doctor.report import summary, told

__all__ = ["Examined", "Finding", "examination", "examine", "summary", "told"]
